//! Damage of stored archives: a change of any byte is found, and the error names the entry.

use std::{fs, path::Path};

use podling_control::backup_store::BackupStoreError;

use super::{
    expect_damage,
    sample::{RAW, SampleArchive, find, sha256},
    store::TestBackupStore,
};

/// Makes an archive differ from its manifest.
type ArchiveDamage = fn(&mut SampleArchive);

/// Changes the content of a file in place.
fn change(file: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(file).expect("read");
    change(&mut bytes);
    fs::write(file, bytes).expect("write");
}

#[tokio::test]
async fn flipped_bit_in_content_names_the_file() {
    let store = TestBackupStore::new();
    let key = store.write(&SampleArchive::new(false)).await.expect("written").key;
    change(&store.zip(&key), |zip| {
        let at = find(zip, b"remember the milk")[0];
        zip[at + 3] ^= 1;
    });
    let (entry, problem) = expect_damage(store.backups.prove(&key).await);
    assert_eq!(entry.as_deref(), Some("notes.txt"), "{problem}");
    let message = store.backups.prove(&key).await.expect_err("damaged").to_string();
    assert!(message.contains(&key.to_string()) && message.contains("damaged: notes.txt"), "{message}");
}

#[tokio::test]
async fn changed_name_in_the_zip_directory_names_the_entry() {
    let store = TestBackupStore::new();
    let key = store.write(&SampleArchive::new(false)).await.expect("written").key;
    change(&store.zip(&key), |zip| {
        let at = *find(zip, b"notes.txt").last().expect("in the directory");
        zip[at] = b'N';
    });
    let (entry, problem) = expect_damage(store.backups.prove(&key).await);
    assert!(entry.as_deref() == Some("notes.txt") && problem.contains("Notes.txt"), "{problem}");
}

#[tokio::test]
async fn truncated_or_extended_object_is_damaged() {
    let store = TestBackupStore::new();
    let key = store.write(&SampleArchive::new(true)).await.expect("written").key;
    for file in [store.zip(&key), store.sidecar(&key)] {
        let good = fs::read(&file).expect("read");
        for length in [0, 1, 50, good.len() / 2, good.len() - 1] {
            fs::write(&file, &good[..length]).expect("write");
            expect_damage(store.backups.prove(&key).await);
        }
        change(&file, |bytes| bytes.clone_from(&[&good[..], b"\n"].concat()));
        expect_damage(store.backups.prove(&key).await);
        fs::write(&file, good).expect("write");
    }
    store.backups.prove(&key).await.expect("restored content");
}

/// Changes each byte of a small archive and of its sidecar in turn.
#[tokio::test]
async fn change_of_any_byte_is_found() {
    for streamed in [false, true] {
        let store = TestBackupStore::new();
        let mut sample = SampleArchive::new(streamed);
        // Small, because each byte costs one proof.
        shrink(&mut sample);
        let key = store.write(&sample).await.expect("written").key;
        for file in [store.zip(&key), store.sidecar(&key)] {
            let good = fs::read(&file).expect("read");
            for at in 0..good.len() {
                let mut bad = good.clone();
                bad[at] ^= 1 << (at % 8);
                fs::write(&file, bad).expect("write");
                let result = store.backups.prove(&key).await;
                assert!(
                    matches!(result, Err(BackupStoreError::Damaged { .. })),
                    "byte {at} of {}: {result:?}",
                    file.display()
                );
            }
            fs::write(&file, good).expect("write");
        }
        store.backups.prove(&key).await.expect("restored content");
    }
}

/// Replaces the sample's zip with one of its first entries only.
fn shrink(sample: &mut SampleArchive) {
    use std::io::{Cursor, Write};
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().unix_permissions(0o640);
    zip.start_file("notes.txt", options).expect("file");
    zip.write_all(b"remember the milk\n").expect("content");
    zip.add_symlink("link", "src/main.py", options.unix_permissions(0o777)).expect("link");
    sample.zip = zip.finish().expect("zip").into_inner();
    sample.entries.retain(|entry| [&b"notes.txt"[..], b"link", b"src/socket"].contains(&&entry.path[..]));
    sample.count();
}

/// The digest of the whole zip is correct in all cases. Only decoding and comparing each entry
/// finds the difference.
#[tokio::test]
async fn difference_from_the_manifest_names_the_entry() {
    let cases: [(&str, &str, ArchiveDamage); 9] = [
        ("src/main.py", "its content does not match the hash", |s| {
            s.entry(b"src/main.py").sha256 = sha256(b"else")
        }),
        ("link", "its content does not match the hash", |s| s.entry(b"link").sha256 = sha256(b"elsewhere")),
        ("notes.txt", "18 bytes of it instead of 19", |s| s.entry(b"notes.txt").size += 1),
        ("notes.txt", "mode 100640 instead of 100600", |s| s.entry(b"notes.txt").mode = 0o600),
        ("others.txt", "the zip has notes.txt instead", |s| {
            s.entry(b"notes.txt").path = b"others.txt".to_vec()
        }),
        ("src/main.py", "the zip has notes.txt instead", |s| s.entries.retain(|e| e.path != b"notes.txt")),
        ("dangling", "it is in the zip, but not in the manifest", |s| drop(s.entries.pop())),
        ("zzz", "it is in the manifest, but not in the zip", |s| {
            let more = s.entries[0].clone();
            s.entries.push(more);
            s.entries.last_mut().expect("entry").path = b"zzz".to_vec();
        }),
        ("link", "mode 120777 instead of 100777", |s| s.entry(b"link").kind = 1),
    ];
    for (name, problem, corrupt) in cases {
        let store = TestBackupStore::new();
        let mut sample = SampleArchive::new(true);
        corrupt(&mut sample);
        sample.count();
        let key = store.write(&sample).await.expect("written").key;
        let (entry, found) = expect_damage(store.backups.prove(&key).await);
        assert!(
            entry.as_deref() == Some(name) && found.contains(problem),
            "{name} {problem}: {entry:?} {found}"
        );
    }
}

#[tokio::test]
async fn name_that_is_not_utf8_is_compared_by_bytes() {
    let store = TestBackupStore::new();
    let mut sample = SampleArchive::new(true);
    let mut other = RAW.to_vec();
    other[4] = 0xfd;
    sample.entry(RAW).path = other;
    let key = store.write(&sample).await.expect("written").key;
    let (entry, _) = expect_damage(store.backups.prove(&key).await);
    assert!(entry.is_some_and(|entry| entry.starts_with("raw-\u{fffd}")));
}

#[tokio::test]
async fn sidecar_of_another_archive_is_rejected() {
    let store = TestBackupStore::new();
    let one = store.write(&SampleArchive::new(true)).await.expect("written").key;
    let two = store.write(&SampleArchive::new(true)).await.expect("written").key;
    fs::copy(store.sidecar(&one), store.sidecar(&two)).expect("copy");
    let (_, problem) = expect_damage(store.backups.prove(&two).await);
    assert!(problem.contains(&one.to_string()), "{problem}");
}
