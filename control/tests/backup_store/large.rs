//! Large archives take no more memory than small ones.

use std::{env, fs, process::Command};

use flate2::Crc;
use futures_util::{Stream, StreamExt, stream};
use podling_proto::agent::v1::{
    ArchiveDone, ArchiveEntry, CreateArchiveResponse, FileKind, create_archive_response::Message,
};
use ring::digest::{Context, SHA256};
use tonic::Status;

use super::store::{TestBackupStore, label};

/// Environment variable that is set in the child process whose memory is measured.
const MEASURED: &str = "PODLING_TEST_MEMORY";
const MIB: u64 = 1024 * 1024;
/// Size of the file in the archive. A multiple of [`MESSAGE_BYTES`].
const FILE_BYTES: u64 = 96 * MIB;
const MESSAGE_BYTES: usize = 256 * 1024;
/// Number of sockets in the manifest, at about 100 bytes each. They are not in the zip.
const SOCKETS: u64 = 60_000;
/// Upper bound of the memory that writing and proving add to the process. They are designed for
/// 16 MiB; the rest is for allocator and runtime.
const ALLOWED_KIB: u64 = 24 * 1024;

#[test]
fn memory_is_bounded_for_large_archives() {
    let run = Command::new(env::current_exe().expect("this program"))
        .args(["--exact", "large::memory_in_a_process_of_its_own", "--ignored", "--nocapture"])
        .env(MEASURED, "1")
        .output()
        .expect("run");
    let stdout = String::from_utf8_lossy(&run.stdout);
    assert!(
        run.status.success() && stdout.contains("1 passed"),
        "{stdout}{}",
        String::from_utf8_lossy(&run.stderr)
    );
}

#[tokio::test]
#[ignore = "run by memory_is_bounded_for_large_archives"]
async fn memory_in_a_process_of_its_own() {
    if env::var_os(MEASURED).is_none() {
        return;
    }
    let store = TestBackupStore::new();
    let before = kib("VmRSS:");
    let written = store.backups.write(&label(), large_archive(), |_| {}).await.expect("written");
    assert_eq!(written.entries, SOCKETS + 1);
    let writing = kib("VmHWM:");
    assert_eq!(store.backups.prove(&written.key).await.expect("proven").bytes, FILE_BYTES);
    let proving = kib("VmHWM:");
    println!("KiB before {before}, writing {writing}, proving {proving}");
    assert!(proving - before < ALLOWED_KIB, "before {before}, writing {writing}, proving {proving}");
}

/// Returns a field of `/proc/self/status` in KiB.
fn kib(key: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("line");
    line.trim().trim_end_matches(" kB").parse().expect("number")
}

/// Returns an archive of one uncompressed file of zeros and of [`SOCKETS`] sockets. The archive is
/// generated while it is read.
fn large_archive() -> impl Stream<Item = Result<CreateArchiveResponse, Status>> + Send {
    let zeros = || (0..FILE_BYTES / MESSAGE_BYTES as u64).map(|_| vec![0_u8; MESSAGE_BYTES]);
    let (mut crc, mut content) = (Crc::new(), Context::new(&SHA256));
    for block in zeros() {
        crc.update(&block);
        content.update(&block);
    }
    let header = |magic: &[u8], made: &[u8]| {
        let size = (FILE_BYTES as u32).to_le_bytes();
        [magic, made, &[20, 0, 0, 0, 0, 0, 0, 0, 0, 0], &crc.sum().to_le_bytes(), &size, &size, &[5, 0, 0, 0]]
            .concat()
    };
    let local = [&header(b"PK\x03\x04", &[])[..], b"zeros"].concat();
    let mode = (0o100_644_u32 << 16).to_le_bytes();
    let directory = [&header(b"PK\x01\x02", &[20, 3])[..], &[0; 6], &mode, &[0; 4], b"zeros"].concat();
    let (length, offset) = (directory.len() as u32, (local.len() as u64 + FILE_BYTES) as u32);
    let end = [&b"PK\x05\x06\0\0\0\0\x01\0\x01\0"[..], &length.to_le_bytes(), &offset.to_le_bytes(), &[0; 2]];
    let tail = [&directory[..], &end.concat()].concat();
    let zip = [local].into_iter().chain(zeros()).chain([tail]);
    let mut digest = Context::new(&SHA256);
    let mut archive_bytes = 0;
    for block in zip.clone() {
        digest.update(&block);
        archive_bytes += block.len() as u64;
    }
    let entry = |path: String, kind: FileKind, size, sha256| ArchiveEntry {
        path: path.into_bytes(),
        kind: kind.into(),
        size,
        mode: 0o644,
        sha256,
        ..ArchiveEntry::default()
    };
    let file = entry("zeros".into(), FileKind::File, FILE_BYTES, content.finish().as_ref().to_vec());
    let sockets = (0..SOCKETS).map(move |n| entry(format!("run/socket-{n}"), FileKind::Other, 0, Vec::new()));
    let done = ArchiveDone {
        entries: SOCKETS + 1,
        bytes: FILE_BYTES,
        archive_bytes,
        archive_sha256: digest.finish().as_ref().to_vec(),
        ..ArchiveDone::default()
    };
    let data = zip.map(|block| Message::Data(block.into()));
    let messages =
        data.chain([Message::Entry(file)]).chain(sockets.map(Message::Entry)).chain([Message::Done(done)]);
    stream::iter(messages).map(|message| Ok(CreateArchiveResponse { message: Some(message) }))
}
