//! The life of an archive: it is written, listed, proven, read and removed.

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
    sample::{RAW, SampleArchive, sha256},
    store::{TestBackupStore, label},
};

#[tokio::test]
async fn archive_is_written_listed_proven_read_and_removed() {
    for streamed in [false, true] {
        let store = TestBackupStore::new();
        let sample = SampleArchive::new(streamed);
        let written = store.write(&sample).await.expect("written");
        assert_eq!(written.sha256.0, sha256(&sample.zip)[..]);
        for file in [store.zip(&written.key), store.sidecar(&written.key)] {
            assert_eq!(fs::metadata(file).expect("metadata").mode() & 0o777, 0o600);
        }
        assert_eq!(store.files().len(), 2, "{:?}", store.files());

        let proof = store.backups.prove(&written.key).await.expect("proven");
        assert_eq!(
            (proof.entries + proof.left_out, proof.bytes),
            (sample.done.entries, sample.done.bytes),
            "the zip and the entries that it cannot hold"
        );
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
async fn sidecar_has_one_json_line_for_each_entry() {
    let store = TestBackupStore::new();
    let key = store.write(&SampleArchive::new(true)).await.expect("written").key;
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
async fn empty_workspace_has_an_archive() {
    let store = TestBackupStore::new();
    let zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new())).finish().expect("zip").into_inner();
    let key = store.write(&SampleArchive::of(zip, Vec::new())).await.expect("written").key;
    assert_eq!(store.backups.prove(&key).await.expect("proven").entries, 0);
}

#[tokio::test]
async fn archives_of_one_second_never_overwrite_files() {
    let store = TestBackupStore::new();
    let sample = SampleArchive::new(true);
    // Other files have the names of this second and of the next four.
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
async fn write_without_unused_key_names_the_cause() {
    let store = TestBackupStore::new();
    let now = SystemTime::UNIX_EPOCH.elapsed().expect("time").as_secs();
    // Enough for a test that runs for an hour.
    for second in now..now + 3_600 {
        fs::write(store.zip(&StoreKey::new(label().id, second)), "").expect("write");
    }
    let error = store.write(&SampleArchive::new(true)).await.expect_err("no key is unused");
    assert!(matches!(error, BackupStoreError::KeysTaken { .. }), "{error:?}");
    assert!(error.to_string().contains("for each of the next 60 seconds"), "{error}");
}

#[tokio::test]
async fn unrecorded_archives_are_those_missing_in_the_record() {
    let (store, sample) = (TestBackupStore::new(), SampleArchive::new(true));
    let write = async |id| {
        let label = ArchiveLabel { id: WorkspaceId::from_bits(id), ..label() };
        store.backups.write(&label, sample.stream(), |_| {}).await.expect("written").key
    };
    let (known, unrecorded_key, half_removed) = (write(1).await, write(1).await, write(1).await);
    write(2).await;
    let unrecorded = async |known: &[&StoreKey]| {
        let known: Vec<StoreKey> = known.iter().map(|key| (*key).clone()).collect();
        store.backups.unrecorded(&WorkspaceId::from_bits(1), &known).await.expect("found")
    };
    assert_eq!(unrecorded(&[&known, &unrecorded_key, &half_removed]).await, []);
    assert_eq!(unrecorded(&[&known, &half_removed]).await, std::slice::from_ref(&unrecorded_key));
    fs::remove_file(store.zip(&half_removed)).expect("remove");
    assert_eq!(
        unrecorded(&[&known]).await,
        [unrecorded_key.clone(), half_removed],
        "an interrupted removal is reported too"
    );
    fs::write(store.sidecar(&unrecorded_key), "rubbish").expect("write");
    assert_eq!(unrecorded(&[&known]).await.len(), 1, "an archive with an unreadable sidecar is not reported");
}

#[tokio::test]
async fn interrupted_removal_leaves_no_valid_archive() {
    let store = TestBackupStore::new();
    let key = store.write(&SampleArchive::new(true)).await.expect("written").key;
    for gone in [store.zip(&key), store.sidecar(&key)] {
        let content = fs::read(&gone).expect("read");
        fs::remove_file(&gone).expect("remove");
        assert_eq!(store.backups.list().await.expect("listed"), []);
        assert!(matches!(store.backups.prove(&key).await, Err(BackupStoreError::Missing { .. })));
        fs::write(&gone, content).expect("write");
    }
    fs::remove_file(store.zip(&key)).expect("remove");
    store.backups.remove(&key).await.expect("removed");
    store.assert_empty();
}

#[tokio::test]
async fn foreign_files_in_the_store_are_left_alone() {
    use std::os::unix::ffi::OsStrExt;
    let store = TestBackupStore::new();
    let key = store.write(&SampleArchive::new(true)).await.expect("written").key;
    let theirs = StoreKey::new(label().id, 5);
    fs::write(store.directory.join("notes.txt"), "theirs").expect("write");
    fs::write(store.directory.join(std::ffi::OsStr::from_bytes(b"\xff\xfe.zip")), "theirs").expect("write");
    fs::write(store.zip(&theirs), "theirs").expect("write");
    fs::write(store.sidecar(&theirs), "{\"schema\": 99}\n{}\n").expect("write");
    fs::create_dir(store.zip(&StoreKey::new(label().id, 6))).expect("directory");
    std::os::unix::fs::symlink("/nowhere", store.sidecar(&StoreKey::new(label().id, 7))).expect("link");
    let before = store.files();
    for _twice in 0..2 {
        let listed: Vec<_> = store.backups.list().await.expect("listed").into_iter().map(|s| s.key).collect();
        assert_eq!(listed, std::slice::from_ref(&key));
    }
    assert_eq!(store.files(), before);
}

#[tokio::test]
async fn progress_is_reported_at_a_bounded_rate() {
    let store = TestBackupStore::new();
    let sample = SampleArchive::new(true);
    let flood = (0..10_000).map(|n| {
        let progress = ArchiveProgress { entries: n, bytes: 2 * n, total_bytes: 9 };
        CreateArchiveResponse { message: Some(Message::Progress(progress)) }
    });
    let reports = Mutex::new(Vec::new());
    let stream = stream::iter(flood.map(Ok)).chain(sample.stream());
    let progress = |p: ReceiveProgress| reports.lock().expect("lock").push(p);
    let began = SystemTime::now();
    store.backups.write(&label(), stream, progress).await.expect("written");
    let reports = reports.into_inner().expect("reports");
    assert_eq!(reports[0], ReceiveProgress { entries: 0, bytes: 0, total_bytes: 9, archive_bytes: 0 });
    let most = 1 + began.elapsed().expect("time").as_millis() / Duration::from_millis(250).as_millis();
    assert!(reports.len() as u128 <= most, "{}", reports.len());
}
