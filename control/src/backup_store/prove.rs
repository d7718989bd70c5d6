//! Proves archives: reads the stored objects back, decodes every entry, and compares it with the
//! manifest. Without a proof, a storage is removed only if a user discards it.
//!
//! At most three threads share the work: one reads, one decodes and one hashes. The queues between
//! them hold at most about 12 MiB.

use tokio::{runtime::Handle, sync::mpsc, task::JoinSet};

use super::{
    ArchiveLabel,
    digest::Sha256Digest,
    error::BackupStoreError,
    key::StoreKey,
    limits::{INDEX_READ_BYTES, READ_BYTES},
    location::StorageLocation,
    sidecar::{MAX_HEADER_BYTES, SidecarHeader, decode_header},
};

mod compare;
mod contents;
mod directory;
mod entry;
mod reader;

use compare::ArchiveComparison;
use directory::{EndOfDirectory, TAIL_BYTES};
use reader::ObjectReader;

/// Blocks of the zip in the queue between reading and decoding.
const BLOCKS_AHEAD: usize = 1;

/// The result of a successful proof.
#[derive(Debug, Clone, PartialEq)]
pub struct ArchiveProof {
    /// The archive's label. The proof permits the removal of the storage only while it has the
    /// label's `storage_generation`.
    pub label: ArchiveLabel,
    /// Entries of the zip.
    pub entries: u64,
    /// Entries that only the manifest lists, because a zip cannot hold them.
    pub left_out: u64,
    /// Size of all content that was decoded and compared, in bytes.
    pub bytes: u64,
    /// Size of the zip, in bytes.
    pub archive_bytes: u64,
    /// Digest of the zip.
    pub sha256: Sha256Digest,
}

/// Proves the archive. Calls `progress` before each block with the bytes of the zip that have been
/// read, and with the zip's size.
pub(super) async fn prove(
    location: &StorageLocation,
    key: &StoreKey,
    progress: impl Fn(u64, u64) + Send,
) -> Result<ArchiveProof, BackupStoreError> {
    let damaged = |problem: String| BackupStoreError::Damaged { key: key.clone(), entry: None, problem };
    let (zip, sidecar) = (key.zip(), key.sidecar());
    let header = read_header(location, key).await?.map_err(damaged)?;
    let (size, all) = (location.size(&zip).await?, location.size(&sidecar).await?);
    if size != header.sidecar.archive_bytes {
        return Err(damaged(format!("the zip has {size} bytes instead of {}", header.sidecar.archive_bytes)));
    }
    if all.checked_sub(header.length) != Some(header.manifest.bytes) {
        let expected = header.length.saturating_add(header.manifest.bytes);
        return Err(damaged(format!("the sidecar has {all} bytes instead of {expected}")));
    }
    let tail = location.range(&zip, size.saturating_sub(TAIL_BYTES)..size).await?;
    let Some(end) = EndOfDirectory::read(&tail, size) else {
        return Err(damaged("the end of the zip is not valid".to_owned()));
    };
    let ranged = |object: &str, at, end| {
        ObjectReader::from_ranges(location.clone(), object.to_owned(), Handle::current(), at, end)
    };
    let (blocks, fed) = mpsc::channel(BLOCKS_AHEAD);
    let check = ArchiveComparison {
        key: key.clone(),
        manifest: ranged(&sidecar, header.length, all),
        directory: ranged(&zip, end.directory.start, end.directory.end),
        zip: ObjectReader::from_blocks(fed),
        header,
        end,
    };
    // If this future is dropped, the channel closes and the thread ends.
    let mut checking = JoinSet::new();
    checking.spawn_blocking(move || check.run());
    let feed = async move {
        let mut at = 0;
        while at < size {
            progress(at, size);
            let block = location.range(&zip, at..size.min(at + READ_BYTES)).await?;
            at += block.len() as u64;
            if blocks.send(block).await.is_err() {
                break;
            }
        }
        Ok(())
    };
    let (fed, checked) = tokio::join!(feed, checking.join_next());
    // A failed read also makes the comparison fail, but it does not mean that the archive is
    // damaged.
    fed?;
    match checked {
        Some(Ok(proven)) => proven,
        Some(Err(error)) => {
            let error = std::io::Error::other(error);
            Err(BackupStoreError::io(location.name(), &format!("reading {key}"), error))
        }
        None => Err(damaged("nothing was compared".to_owned())),
    }
}

/// Reads the first two lines of the sidecar. The inner error says why they are not valid.
pub(super) async fn read_header(
    location: &StorageLocation,
    key: &StoreKey,
) -> Result<Result<SidecarHeader, String>, BackupStoreError> {
    let object = key.sidecar();
    let size = location.size(&object).await?.min(MAX_HEADER_BYTES);
    let mut text = Vec::new();
    loop {
        let at = text.len() as u64;
        let more = location.range(&object, at..size.min(at + HEADER_READ_BYTES)).await?;
        text.extend_from_slice(&more);
        match decode_header(key, &text) {
            Ok(Some(header)) => return Ok(Ok(header)),
            Ok(None) if !more.is_empty() => {}
            Ok(None) => return Ok(Err("its sidecar has no head".to_owned())),
            Err(problem) => return Ok(Err(problem)),
        }
    }
}

/// Size of one read of a sidecar's first two lines, in bytes. One read usually suffices.
const HEADER_READ_BYTES: u64 = INDEX_READ_BYTES / 16;
