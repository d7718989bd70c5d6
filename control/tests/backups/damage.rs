//! What happens to a backup that is stored: every byte of it matters, and what is wrong is named.

use std::{fs, path::Path};

use podling_control::backup_store::BackupStoreError;

use super::{
    damage,
    sample::{RAW, Sample, find, sha256},
    store::Store,
};

/// Makes an archive something else than it says.
type Spoil = fn(&mut Sample);

/// Changes a stored file.
fn change(file: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(file).expect("read");
    change(&mut bytes);
    fs::write(file, bytes).expect("write");
}

#[tokio::test]
async fn a_flipped_bit_in_a_files_data_names_the_file() {
    let store = Store::new();
    let key = store.write(&Sample::new(false)).await.expect("written").key;
    change(&store.zip(&key), |zip| {
        let at = find(zip, b"remember the milk")[0];
        zip[at + 3] ^= 1;
    });
    let (entry, problem) = damage(store.backups.prove(&key).await);
    assert_eq!(entry.as_deref(), Some("notes.txt"), "{problem}");
    let words = store.backups.prove(&key).await.expect_err("damaged").to_string();
    assert!(words.contains(&key.to_string()) && words.contains("damaged: notes.txt"), "{words}");
}

#[tokio::test]
async fn a_flipped_bit_in_a_name_names_it() {
    let store = Store::new();
    let key = store.write(&Sample::new(false)).await.expect("written").key;
    change(&store.zip(&key), |zip| {
        let at = *find(zip, b"notes.txt").last().expect("in the directory");
        zip[at] = b'N';
    });
    let (entry, problem) = damage(store.backups.prove(&key).await);
    assert!(entry.as_deref() == Some("notes.txt") && problem.contains("Notes.txt"), "{problem}");
}

#[tokio::test]
async fn a_cut_or_longer_object_is_damaged() {
    let store = Store::new();
    let key = store.write(&Sample::new(true)).await.expect("written").key;
    for file in [store.zip(&key), store.sidecar(&key)] {
        let good = fs::read(&file).expect("read");
        for length in [0, 1, 50, good.len() / 2, good.len() - 1] {
            fs::write(&file, &good[..length]).expect("write");
            damage(store.backups.prove(&key).await);
        }
        change(&file, |bytes| bytes.clone_from(&[&good[..], b"\n"].concat()));
        damage(store.backups.prove(&key).await);
        fs::write(&file, good).expect("write");
    }
    store.backups.prove(&key).await.expect("as it was");
}

/// Not at random: all of them.
#[tokio::test]
async fn no_byte_changes_unnoticed() {
    for streamed in [false, true] {
        let store = Store::new();
        let mut sample = Sample::new(streamed);
        // Small, so that every byte has its turn.
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
        store.backups.prove(&key).await.expect("as it was");
    }
}

/// Ends the sample behind its first entries, by another archive of them.
fn shrink(sample: &mut Sample) {
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

/// The digest of the whole is right in all of these: only decoding and comparing every entry finds them.
#[tokio::test]
async fn a_zip_that_is_not_what_its_manifest_says_is_damaged_at_that_entry() {
    let cases: [(&str, &str, Spoil); 9] = [
        ("src/main.py", "its content is not what was archived", |s| {
            s.entry(b"src/main.py").sha256 = sha256(b"else")
        }),
        ("link", "its content is not what was archived", |s| s.entry(b"link").sha256 = sha256(b"elsewhere")),
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
    for (name, problem, spoil) in cases {
        let store = Store::new();
        let mut sample = Sample::new(true);
        spoil(&mut sample);
        sample.count();
        let key = store.write(&sample).await.expect("written").key;
        let (entry, said) = damage(store.backups.prove(&key).await);
        assert!(
            entry.as_deref() == Some(name) && said.contains(problem),
            "{name} {problem}: {entry:?} {said}"
        );
    }
}

#[tokio::test]
async fn a_name_that_is_no_text_is_compared_by_its_bytes() {
    let store = Store::new();
    let mut sample = Sample::new(true);
    let mut other = RAW.to_vec();
    other[4] = 0xfd;
    sample.entry(RAW).path = other;
    let key = store.write(&sample).await.expect("written").key;
    let (entry, _) = damage(store.backups.prove(&key).await);
    assert!(entry.is_some_and(|entry| entry.starts_with("raw-\u{fffd}")));
}

#[tokio::test]
async fn the_sidecar_of_another_backup_proves_nothing() {
    let store = Store::new();
    let one = store.write(&Sample::new(true)).await.expect("written").key;
    let two = store.write(&Sample::new(true)).await.expect("written").key;
    fs::copy(store.sidecar(&one), store.sidecar(&two)).expect("copy");
    let (_, problem) = damage(store.backups.prove(&two).await);
    assert!(problem.contains(&one.to_string()), "{problem}");
}
