//! What a backup is for: it is there, it is proven, it is read back, it goes.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    sync::Mutex,
    time::{Duration, SystemTime},
};

use futures_util::{StreamExt, TryStreamExt, stream};
use podling_control::backup_store::{ArchiveLabel, BackupStoreError, ReceiveProgress, StoreKey};
use podling_core::id::WorkspaceId;
use podling_proto::agent::v1::{ArchiveProgress, CreateArchiveResponse, create_archive_response::Message};

use super::{
    sample::{RAW, Sample, sha256},
    store::{Store, label},
};

#[tokio::test]
async fn an_archive_is_written_listed_proven_read_and_removed() {
    for streamed in [false, true] {
        let store = Store::new();
        let sample = Sample::new(streamed);
        let written = store.write(&sample).await.expect("written");
        assert_eq!(written.sha256.0, sha256(&sample.zip)[..]);
        for file in [store.zip(&written.key), store.sidecar(&written.key)] {
            assert_eq!(fs::metadata(file).expect("metadata").mode() & 0o777, 0o600);
        }
        assert_eq!(store.files().len(), 2, "{:?}", store.files());

        let proof = store.backups.prove(&written.key).await.expect("proven");
        assert_eq!((proof.entries, proof.bytes), (sample.done.entries, sample.done.bytes));
        assert_eq!((proof.archive_bytes, proof.sha256), (sample.zip.len() as u64, written.sha256));
        assert_eq!(proof.label, label());

        let listed = store.backups.list().await.expect("listed");
        assert_eq!(listed.len(), 1);
        assert_eq!((&listed[0].key, &listed[0].label), (&written.key, &label()));
        assert_eq!((listed[0].entries, listed[0].sha256), (written.entries, written.sha256));

        let read: Vec<_> = store.backups.read(&written.key).try_collect().await.expect("read");
        assert!(read.concat() == sample.zip);

        store.backups.remove(&written.key).await.expect("removed");
        store.assert_empty();
        store.backups.remove(&written.key).await.expect("removed again");
        let gone = store.backups.prove(&written.key).await.expect_err("gone");
        assert!(
            matches!(&gone, BackupStoreError::Missing { object, .. } if object.ends_with(".jsonl")),
            "{gone}"
        );
        let gone = store.backups.read(&written.key).try_collect::<Vec<_>>().await.expect_err("gone");
        assert!(
            matches!(&gone, BackupStoreError::Missing { object, .. } if object.ends_with(".zip")),
            "{gone}"
        );
    }
}

#[tokio::test]
async fn the_sidecar_is_json_by_the_line_with_every_name() {
    let store = Store::new();
    let key = store.write(&Sample::new(true)).await.expect("written").key;
    let text = fs::read_to_string(store.sidecar(&key)).expect("sidecar");
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!((&lines[0]["schema"], &lines[0]["label"]["owner"]), (&1.into(), &"ada".into()));
    let named = |name: &str, value: &str| lines.iter().find(|line| line[name] == value).expect("line");
    assert_eq!(named("path", "src/grün.txt")["size"], 600);
    assert_eq!(named("path", "src/socket")["kind"], "other");
    assert_eq!(named("path", "link")["kind"], "symlink");
    let raw = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, RAW);
    assert_eq!(named("path_base64", &raw)["mtime"], serde_json::json!([1_700_000_000, 5]));
}

#[tokio::test]
async fn an_empty_workspace_has_a_backup_too() {
    let store = Store::new();
    let zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new())).finish().expect("zip").into_inner();
    let key = store.write(&Sample::of(zip, Vec::new())).await.expect("written").key;
    assert_eq!(store.backups.prove(&key).await.expect("proven").entries, 0);
}

#[tokio::test]
async fn two_archives_in_one_second_have_two_names_and_nothing_is_overwritten() {
    let store = Store::new();
    let sample = Sample::new(true);
    // Somebody's files have the names of this second and the next ones.
    let now = SystemTime::UNIX_EPOCH.elapsed().expect("time").as_secs();
    let taken: Vec<_> = (now..now + 5).map(|second| StoreKey::new(label().id, second)).collect();
    for (n, key) in taken.iter().enumerate() {
        let file = if n % 2 == 0 { store.zip(key) } else { store.sidecar(key) };
        fs::write(file, "precious").expect("write");
    }
    let both = tokio::join!(store.write(&sample), store.write(&sample));
    let (one, other) = (both.0.expect("written").key, both.1.expect("written").key);
    assert!(one != other && !taken.contains(&one) && !taken.contains(&other), "{one} {other}");
    for key in [&one, &other] {
        store.backups.prove(key).await.expect("proven");
    }
    for (n, key) in taken.iter().enumerate() {
        let file = if n % 2 == 0 { store.zip(key) } else { store.sidecar(key) };
        assert_eq!(fs::read_to_string(file).expect("read"), "precious");
    }
}

#[tokio::test]
async fn a_stray_is_of_this_workspace_and_nobody_knows_of_it() {
    let (store, sample) = (Store::new(), Sample::new(true));
    let write = async |id| {
        let label = ArchiveLabel { id: WorkspaceId::from_bits(id), ..label() };
        store.backups.write(&label, sample.stream(), |_| {}).await.expect("written").key
    };
    let (known, stray, half) = (write(1).await, write(1).await, write(1).await);
    write(2).await;
    let unrecorded = async |known: &[&StoreKey]| {
        let known: Vec<StoreKey> = known.iter().map(|key| (*key).clone()).collect();
        store.backups.unrecorded(&WorkspaceId::from_bits(1), &known).await.expect("found")
    };
    assert_eq!(unrecorded(&[&known, &stray, &half]).await, []);
    assert_eq!(unrecorded(&[&known, &half]).await, std::slice::from_ref(&stray));
    fs::remove_file(store.zip(&half)).expect("remove");
    assert_eq!(unrecorded(&[&known]).await, [stray.clone(), half], "also when its removal was interrupted");
    fs::write(store.sidecar(&stray), "rubbish").expect("write");
    assert_eq!(unrecorded(&[&known]).await.len(), 1, "of what cannot be read nothing is concluded");
}

#[tokio::test]
async fn a_removal_that_was_interrupted_leaves_nothing_that_looks_whole_and_is_repeated() {
    let store = Store::new();
    let key = store.write(&Sample::new(true)).await.expect("written").key;
    for gone in [store.zip(&key), store.sidecar(&key)] {
        let kept = fs::read(&gone).expect("read");
        fs::remove_file(&gone).expect("remove");
        assert_eq!(store.backups.list().await.expect("listed"), []);
        assert!(matches!(store.backups.prove(&key).await, Err(BackupStoreError::Missing { .. })));
        fs::write(&gone, kept).expect("write");
    }
    fs::remove_file(store.zip(&key)).expect("remove");
    store.backups.remove(&key).await.expect("removed");
    store.assert_empty();
}

#[tokio::test]
async fn strangers_in_the_folder_are_left_alone() {
    use std::os::unix::ffi::OsStrExt;
    let store = Store::new();
    let key = store.write(&Sample::new(true)).await.expect("written").key;
    let theirs = StoreKey::new(label().id, 5);
    fs::write(store.folder.join("notes.txt"), "theirs").expect("write");
    fs::write(store.folder.join(std::ffi::OsStr::from_bytes(b"\xff\xfe.zip")), "theirs").expect("write");
    fs::write(store.zip(&theirs), "theirs").expect("write");
    fs::write(store.sidecar(&theirs), "{\"schema\": 99}\n{}\n").expect("write");
    fs::create_dir(store.zip(&StoreKey::new(label().id, 6))).expect("folder");
    std::os::unix::fs::symlink("/nowhere", store.sidecar(&StoreKey::new(label().id, 7))).expect("link");
    let before = store.files();
    for _twice in 0..2 {
        let listed: Vec<_> = store.backups.list().await.expect("listed").into_iter().map(|s| s.key).collect();
        assert_eq!(listed, std::slice::from_ref(&key));
    }
    assert_eq!(store.files(), before);
}

#[tokio::test]
async fn progress_is_passed_on_but_not_a_flood_of_it() {
    let store = Store::new();
    let sample = Sample::new(true);
    let flood = (0..10_000).map(|n| {
        let progress = ArchiveProgress { entries: n, bytes: 2 * n, total_bytes: 9 };
        CreateArchiveResponse { message: Some(Message::Progress(progress)) }
    });
    let told = Mutex::new(Vec::new());
    let stream = stream::iter(flood.map(Ok)).chain(sample.stream());
    let progress = |p: ReceiveProgress| told.lock().expect("lock").push(p);
    let began = SystemTime::now();
    store.backups.write(&label(), stream, progress).await.expect("written");
    let told = told.into_inner().expect("told");
    assert_eq!(told[0], ReceiveProgress { entries: 0, bytes: 0, total_bytes: 9, archive_bytes: 0 });
    let most = 1 + began.elapsed().expect("time").as_millis() / Duration::from_millis(250).as_millis();
    assert!(told.len() as u128 <= most, "{}", told.len());
}
