//! Law 6: an archive is proven by reading back what is stored, decoding every entry, and comparing it with the manifest.
//!
//! Three threads at most share the work: one fetches, one decodes, one hashes; what lies between them is bounded (about 12 MiB).

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

/// Blocks of the zip that are fetched ahead, besides the one being fetched and the one being decoded.
const BLOCKS_AHEAD: usize = 1;

/// What has been proven.
#[derive(Debug, Clone, PartialEq)]
pub struct ArchiveProof {
    /// Of what: its `storage_generation` says what may go because of this.
    pub label: ArchiveLabel,
    /// Lines of the manifest.
    pub entries: u64,
    /// Of content, decoded and compared, in bytes: all sizes in the manifest together.
    pub bytes: u64,
    /// Of the zip, in bytes.
    pub archive_bytes: u64,
    /// Of the zip.
    pub sha256: Sha256Digest,
}

/// Reads the backup back and compares; `progress` is called with each block: how many bytes of the zip are read, of how many.
pub(super) async fn prove(
    place: &StorageLocation,
    key: &StoreKey,
    progress: impl Fn(u64, u64) + Send,
) -> Result<ArchiveProof, BackupStoreError> {
    let damaged = |problem: String| BackupStoreError::Damaged { key: key.clone(), entry: None, problem };
    let (zip, sidecar) = (key.zip(), key.sidecar());
    let header = read_header(place, key).await?.map_err(damaged)?;
    let (size, all) = (place.size(&zip).await?, place.size(&sidecar).await?);
    if size != header.sidecar.archive_bytes {
        return Err(damaged(format!("the zip has {size} bytes instead of {}", header.sidecar.archive_bytes)));
    }
    if all.checked_sub(header.length) != Some(header.manifest.bytes) {
        return Err(damaged(format!("its sidecar has {all} bytes, which are not as many as were written")));
    }
    let tail = place.range(&zip, size.saturating_sub(TAIL_BYTES)..size).await?;
    let Some(end) = EndOfDirectory::read(&tail, size) else {
        return Err(damaged("the zip has no proper end".to_owned()));
    };
    let ranged = |object: &str, at, end| {
        ObjectReader::ranged(place.clone(), object.to_owned(), Handle::current(), at, end)
    };
    let (blocks, fed) = mpsc::channel(BLOCKS_AHEAD);
    let check = ArchiveComparison {
        key: key.clone(),
        manifest: ranged(&sidecar, header.length, all),
        directory: ranged(&zip, end.directory.start, end.directory.end),
        zip: ObjectReader::fed(fed),
        header,
        end,
    };
    // When nobody waits for it any more, no more blocks come, and it ends.
    let mut checking = JoinSet::new();
    checking.spawn_blocking(move || check.run());
    let feed = async move {
        let mut at = 0;
        while at < size {
            progress(at, size);
            let block = place.range(&zip, at..size.min(at + READ_BYTES)).await?;
            at += block.len() as u64;
            if blocks.send(block).await.is_err() {
                break;
            }
        }
        Ok(())
    };
    let (fed, checked) = tokio::join!(feed, checking.join_next());
    // If it got too little to read, that is not the backup's fault.
    fed?;
    match checked {
        Some(Ok(proven)) => proven,
        Some(Err(error)) => {
            let error = std::io::Error::other(error);
            Err(BackupStoreError::io(place.name(), &format!("reading {key}"), error))
        }
        None => Err(damaged("nothing was compared".to_owned())),
    }
}

/// The sidecar's first two lines; or what is wrong with them.
pub(super) async fn read_header(
    place: &StorageLocation,
    key: &StoreKey,
) -> Result<Result<SidecarHeader, String>, BackupStoreError> {
    let object = key.sidecar();
    let size = place.size(&object).await?.min(MAX_HEADER_BYTES);
    let mut text = Vec::new();
    loop {
        let at = text.len() as u64;
        let more = place.range(&object, at..size.min(at + HEADER_READ_BYTES)).await?;
        text.extend_from_slice(&more);
        match decode_header(key, &text) {
            Ok(Some(header)) => return Ok(Ok(header)),
            Ok(None) if !more.is_empty() => {}
            Ok(None) => return Ok(Err("its sidecar has no head".to_owned())),
            Err(problem) => return Ok(Err(problem)),
        }
    }
}

/// What a listing reads of a sidecar at a time, in bytes: usually enough.
const HEADER_READ_BYTES: u64 = INDEX_READ_BYTES / 16;
