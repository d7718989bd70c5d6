//! Hostile and failing agents: what they send is bounded, and an incomplete archive leaves no
//! object.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use podling_proto::agent::v1::{
    ArchiveProgress, CreateArchiveResponse, SkippedEntry, create_archive_response::Message,
};
use tokio::sync::Notify;
use tonic::Status;

use super::{
    expect_damage, expect_incomplete,
    sample::{SampleArchive, find, replace},
    store::{TestBackupStore, label},
};

/// Makes a valid value invalid.
type Corruption<T> = fn(&mut T);

fn message(message: Message) -> CreateArchiveResponse {
    CreateArchiveResponse { message: Some(message) }
}

#[tokio::test]
async fn truncated_stream_leaves_no_object() {
    let store = TestBackupStore::new();
    let messages = SampleArchive::new(true).messages();
    for length in [0, 1, messages.len() / 2, messages.len() - 1] {
        let cut = stream::iter(messages[..length].iter().cloned().map(Ok));
        let message = expect_incomplete(store.backups.write(&label(), cut, |_| {}).await);
        assert!(message.contains("ended early"), "{message}");
        store.assert_empty();
        let broken =
            messages[..length].iter().cloned().map(Ok).chain([Err(Status::unavailable("it was killed"))]);
        let message = expect_incomplete(store.backups.write(&label(), stream::iter(broken), |_| {}).await);
        assert!(message.contains("it was killed"), "{message}");
        store.assert_empty();
    }
    assert_eq!(store.backups.list().await.expect("listed"), []);
}

#[tokio::test]
async fn cancelled_write_leaves_no_object() {
    let store = TestBackupStore::new();
    let arrived = Arc::new(Notify::new());
    let notifier = arrived.clone();
    let half: Vec<_> = SampleArchive::new(true).messages().into_iter().take(5).map(Ok).collect();
    let endless = stream::iter(half).chain(stream::once(async move {
        notifier.notify_one();
        std::future::pending().await
    }));
    let label = label();
    tokio::select! {
        done = store.backups.write(&label, endless, |_| {}) => panic!("{done:?}"),
        () = arrived.notified() => {}
    }
    store.assert_empty();
}

#[tokio::test]
async fn skipped_entries_make_an_archive_incomplete_with_reasons() {
    let store = TestBackupStore::new();
    let mut sample = SampleArchive::new(true);
    sample.done.skipped_count = 250;
    sample.done.skipped = (0..100)
        .map(|n| SkippedEntry {
            path: format!("secret-{n}\u{1b}[31m").into_bytes(),
            reason: "permission denied".into(),
        })
        .collect();
    let message = expect_incomplete(store.write(&sample).await);
    assert!(
        message.contains("secret-0\\u{1b}[31m: permission denied") && message.contains("and 230 more"),
        "{message}"
    );
    store.assert_empty();
    sample.done.skipped.clear();
    sample.done.skipped_count = 1;
    assert!(expect_incomplete(store.write(&sample).await).contains("1 more"));
    store.assert_empty();
}

#[tokio::test]
async fn received_archive_must_match_the_agents_summary() {
    let cases: [(&str, Corruption<SampleArchive>); 7] = [
        ("entries", |s| s.done.entries += 1),
        ("bytes of content", |s| s.done.bytes -= 1),
        ("bytes of zip", |s| s.done.archive_bytes += 1),
        ("digest", |s| s.done.archive_sha256[0] ^= 1),
        ("digest", |s| s.zip[100] ^= 1),
        ("same name", |s| {
            s.entries.push(s.entries[1].clone());
            s.count();
        }),
        ("path is not valid", |s| s.entry(b"link").path.clear()),
    ];
    for (problem, corrupt) in cases {
        let store = TestBackupStore::new();
        let mut sample = SampleArchive::new(true);
        corrupt(&mut sample);
        let message = expect_incomplete(store.write(&sample).await);
        assert!(message.contains(problem), "{problem}: {message}");
        store.assert_empty();
    }
    let store = TestBackupStore::new();
    let mut messages = SampleArchive::new(true).messages();
    messages.push(message(Message::Data(b"more"[..].into())));
    let message = expect_incomplete(
        store.backups.write(&label(), stream::iter(messages.into_iter().map(Ok)), |_| {}).await,
    );
    assert!(message.contains("after the end"), "{message}");
    store.assert_empty();
}

#[tokio::test]
async fn archive_beyond_any_limit_is_incomplete() {
    use podling_control::backup_store::ArchiveLimits;
    let cases: [(&str, Corruption<ArchiveLimits>); 4] = [
        ("more than 2000 bytes of zip", |l| l.archive_bytes = 2000),
        ("more than 1000 bytes of content", |l| l.content_bytes = 1000),
        ("more than 5 entries", |l| l.entries = 5),
        ("more than 700 bytes of manifest", |l| l.manifest_bytes = 700),
    ];
    for (problem, limit) in cases {
        let store = TestBackupStore::with_limits(limit);
        let message = expect_incomplete(store.write(&SampleArchive::new(true)).await);
        assert!(message.contains(problem), "{message}");
        store.assert_empty();
    }
    let store = TestBackupStore::new();
    let mut sample = SampleArchive::new(true);
    sample.entry(b"notes.txt").size = u64::MAX;
    sample.done.bytes = u64::MAX;
    assert!(expect_incomplete(store.write(&sample).await).contains("bytes of content"));
    store.assert_empty();
}

/// Progress messages do not count as data.
#[tokio::test]
async fn agent_that_sends_only_progress_times_out() {
    let store = TestBackupStore::with_limits(|limits| limits.silence = Duration::from_millis(300));
    let progress = || message(Message::Progress(ArchiveProgress::default()));
    let busy = stream::unfold((), |()| async move {
        tokio::time::sleep(Duration::from_millis(20)).await;
        Some((Ok(progress()), ()))
    });
    let message = expect_incomplete(store.backups.write(&label(), busy, |_| {}).await);
    assert!(message.contains("sent nothing"), "{message}");
    store.assert_empty();
}

/// The digest is the agent's own, so only the structure of the zip shows the ambiguity.
#[tokio::test]
async fn ambiguous_zip_is_damaged() {
    const CENTRAL: &[u8] = b"PK\x01\x02";
    const LOCAL: &[u8] = b"PK\x03\x04";
    let cases: [(&str, bool, Corruption<Vec<u8>>); 11] = [
        ("its local header contradicts", false, |zip| {
            let at = find(zip, b"notes.txt")[0];
            zip[at] = b'N';
        }),
        ("its checksum is wrong", true, |zip| {
            let at = find(zip, CENTRAL)[2];
            zip[at + 16] ^= 1;
        }),
        ("its flags are not", false, |zip| {
            for magic in [(LOCAL, 6), (CENTRAL, 8)] {
                let at = find(zip, magic.0)[2];
                zip[at + magic.1] |= 1;
            }
        }),
        ("method is not supported", false, |zip| {
            for magic in [(LOCAL, 8), (CENTRAL, 10)] {
                let at = find(zip, magic.0)[2];
                zip[at + magic.1] = 12;
            }
        }),
        ("it does not begin where", false, |zip| {
            let at = find(zip, CENTRAL)[0];
            zip[at + 42] += 1;
        }),
        ("end of the zip is not valid", false, |zip| zip.extend(b"trailer")),
        ("end of the zip is not valid", false, |zip| zip.splice(0..0, *b"#!/bin/sh\n").for_each(drop)),
        ("end of the zip is not valid", false, |zip| {
            // The marker of zip64 records, which the zip does not have.
            let end = zip.len() - 22;
            zip[end + 8..end + 12].fill(0xff);
        }),
        ("its count is wrong", false, |zip| {
            let end = zip.len() - 22;
            zip[end + 8] += 1;
            zip[end + 10] += 1;
        }),
        ("unexpected bytes follow its data", false, |zip| insert_gap(zip)),
        ("its data descriptor contradicts", true, |zip| {
            let at = find(zip, b"PK\x07\x08")[1];
            zip[at + 4] ^= 1;
        }),
    ];
    for (problem, streamed, corrupt) in cases {
        let store = TestBackupStore::new();
        let mut sample = SampleArchive::new(streamed);
        corrupt(&mut sample.zip);
        sample.count();
        let key = store.write(&sample).await.expect("written").key;
        let (entry, found) = expect_damage(store.backups.prove(&key).await);
        assert!(found.contains(problem), "{problem}: {entry:?} {found}");
    }
}

/// Inserts bytes that belong to no entry before the second entry, and corrects all offsets.
fn insert_gap(zip: &mut Vec<u8>) {
    const GAP: usize = 7;
    let second = find(zip, b"PK\x03\x04")[1];
    zip.splice(second..second, [0; GAP]).for_each(drop);
    let end = zip.len() - 22;
    let offsets = find(zip, b"PK\x01\x02").into_iter().skip(1).map(|at| at + 42).chain([end + 16]);
    for at in offsets.collect::<Vec<_>>() {
        let offset = u32::from_le_bytes(zip[at..at + 4].try_into().expect("four"));
        zip[at..at + 4].copy_from_slice(&(offset + GAP as u32).to_le_bytes());
    }
}

/// A decompression bomb: decoding stops at the size that the header states.
#[tokio::test]
async fn entry_larger_than_its_header_says_is_not_decoded_to_its_end() {
    let store = TestBackupStore::new();
    let mut sample = SampleArchive::new(false);
    // "src/main.py" has 7,500 bytes; both directories say 100.
    let (size, false_size) = (7500_u32.to_le_bytes(), 100_u32.to_le_bytes());
    replace(&mut sample.zip, &size, &false_size);
    sample.entry(b"src/main.py").size = 100;
    sample.count();
    let key = store.write(&sample).await.expect("written").key;
    let (entry, problem) = expect_damage(store.backups.prove(&key).await);
    assert!(
        entry.as_deref() == Some("src/main.py")
            && problem.contains("its content is longer than its header declares"),
        "{problem}"
    );
}
