//! Law 6: an archive is proven by reading back what is stored, decoding every entry, and comparing it with the manifest.
//!
//! Three threads at most share the work: one fetches, one decodes, one hashes; what lies between them is bounded (about 12 MiB).

use tokio::{runtime::Handle, sync::mpsc, task::JoinSet};

use super::{
    Label,
    digest::Digest,
    error::BackupError,
    key::Key,
    limits::{INDEX_READ_BYTES, READ_BYTES},
    place::Place,
    sidecar::{FRONT_BYTES, Front, read_front},
};

mod check;
mod contents;
mod directory;
mod entry;
mod reader;

use check::Check;
use directory::{End, TAIL_BYTES};
use reader::Reader;

/// Blocks of the zip that are fetched ahead, besides the one being fetched and the one being decoded.
const BLOCKS_AHEAD: usize = 1;

/// What has been proven.
#[derive(Debug, Clone, PartialEq)]
pub struct Proof {
    /// Of what: its `storage_generation` says what may go because of this.
    pub label: Label,
    /// Lines of the manifest.
    pub entries: u64,
    /// Of content, decoded and compared, in bytes: all sizes in the manifest together.
    pub bytes: u64,
    /// Of the zip, in bytes.
    pub archive_bytes: u64,
    /// Of the zip.
    pub sha256: Digest,
}

/// Reads the backup back and compares; `progress` is called with each block: how many bytes of the zip are read, of how many.
pub(super) async fn prove(
    place: &Place,
    key: &Key,
    progress: impl Fn(u64, u64) + Send,
) -> Result<Proof, BackupError> {
    let damaged = |problem: String| BackupError::Damaged { key: key.clone(), entry: None, problem };
    let (zip, sidecar) = (key.zip(), key.sidecar());
    let front = front(place, key).await?.map_err(damaged)?;
    let (size, all) = (place.size(&zip).await?, place.size(&sidecar).await?);
    if size != front.sidecar.archive_bytes {
        return Err(damaged(format!("the zip has {size} bytes instead of {}", front.sidecar.archive_bytes)));
    }
    if all.checked_sub(front.length) != Some(front.manifest.bytes) {
        return Err(damaged(format!("its sidecar has {all} bytes, which are not as many as were written")));
    }
    let tail = place.range(&zip, size.saturating_sub(TAIL_BYTES)..size).await?;
    let Some(end) = End::read(&tail, size) else {
        return Err(damaged("the zip has no proper end".to_owned()));
    };
    let ranged =
        |object: &str, at, end| Reader::ranged(place.clone(), object.to_owned(), Handle::current(), at, end);
    let (blocks, fed) = mpsc::channel(BLOCKS_AHEAD);
    let check = Check {
        key: key.clone(),
        manifest: ranged(&sidecar, front.length, all),
        directory: ranged(&zip, end.directory.start, end.directory.end),
        zip: Reader::fed(fed),
        front,
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
            Err(BackupError::io(place.name(), &format!("reading {key}"), error))
        }
        None => Err(damaged("nothing was compared".to_owned())),
    }
}

/// The sidecar's first two lines; or what is wrong with them.
pub(super) async fn front(place: &Place, key: &Key) -> Result<Result<Front, String>, BackupError> {
    let object = key.sidecar();
    let size = place.size(&object).await?.min(FRONT_BYTES);
    let mut text = Vec::new();
    loop {
        let at = text.len() as u64;
        let more = place.range(&object, at..size.min(at + FRONT_READ_BYTES)).await?;
        text.extend_from_slice(&more);
        match read_front(key, &text) {
            Ok(Some(front)) => return Ok(Ok(front)),
            Ok(None) if !more.is_empty() => {}
            Ok(None) => return Ok(Err("its sidecar has no head".to_owned())),
            Err(problem) => return Ok(Err(problem)),
        }
    }
}

/// What a listing reads of a sidecar at a time, in bytes: usually enough.
const FRONT_READ_BYTES: u64 = INDEX_READ_BYTES / 16;
