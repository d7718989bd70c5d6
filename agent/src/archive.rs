//! Archives: a folder of the workspace as a standard zip, and back. Knows neither proto nor HTTP.
//!
//! A zip is made by threads of its own beside the runtime's, and handed on piece by piece in bounded memory; who drops the stream ends them.
//! To be unpacked it is received whole into a file without a name and looked through; only then anything is written. Reading order:
//! `create`, `walk`, `order`, `work`, `write` for the one way; `read`, `inspect`, `unpack` for the other; `layout` is the format.

mod compress;
mod create;
mod decode;
mod deflate;
mod dispatch;
mod error;
mod extract;
mod extract_progress;
mod glob;
mod huffman;
mod ignore;
mod inspect;
mod layout;
mod manifest;
mod memory_budget;
mod metadata;
mod read;
mod receive;
mod safe_dir_walker;
mod source;
mod spool;
mod walk;
mod write;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_util::{Stream, StreamExt, stream};
use tokio::{
    sync::{
        OwnedSemaphorePermit, Semaphore,
        mpsc::{self, Receiver},
    },
    task::{JoinHandle, spawn_blocking},
};

pub use self::{
    error::ArchiveError,
    ignore::{MAX_PATTERN_BYTES, MAX_PATTERNS},
    manifest::{ArchiveProgress, ArchiveSummary, ArchivedEntry, CreateEvent, MAX_SKIPPED, SkippedEntry},
    receive::ArchiveReceiver,
};
use self::{
    error::ArchiveStop, extract::Extraction, extract_progress::ExtractProgress, ignore::IgnoreRules,
    read::ZipReader,
};
use crate::{
    admission::{AdmissionGate, AdmitError, Intent, Rejection},
    files::{FileError, RelPath, WorkspaceRoot},
};

/// Archives being made or unpacked at once, 50 MiB of memory and a few threads each; the next is refused with TOO_MANY_STREAMS.
pub const MAX_ARCHIVES: usize = 2;
/// Entries of an archive, made or unpacked; one with more is refused. What is held for each of them while a zip is looked through is 64 bytes.
pub const MAX_ENTRIES: u64 = 2_000_000;
/// Messages between the threads and the stream, 256 KiB at most each; then the threads wait.
const EVENT_QUEUE: usize = 8;

/// How an archive is to be made.
#[derive(Debug, Clone, Default)]
pub struct CreateOptions {
    /// Leave nothing out.
    pub preservation: bool,
    /// Lines as in a .gitignore at the folder.
    pub ignore: Vec<Vec<u8>>,
    /// Also obey ignore files that are found.
    pub ignore_files: bool,
}

/// How an archive is to be unpacked.
#[derive(Debug, Clone, Default)]
pub struct ExtractOptions {
    /// Replace files that are there.
    pub replace: bool,
    /// What the zip must hash to.
    pub sha256: Option<[u8; 32]>,
}

/// A piece of the answer to unpacking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtractEvent {
    /// Now and then.
    Progress(ArchiveProgress),
    /// The last one.
    Done {
        /// Of the zip.
        entries: u64,
        /// Of content.
        bytes: u64,
    },
}

/// Archives of the workspace.
#[derive(Debug, Clone)]
pub struct Archives {
    root: Arc<WorkspaceRoot>,
    gate: Arc<AdmissionGate>,
    /// For files without names, outside the user's view.
    scratch: Arc<Path>,
    permits: Arc<Semaphore>,
}

impl Archives {
    /// Of what is below `root`; what has to be put by for a while goes to the folder `scratch`.
    pub fn new(
        root: impl Into<Arc<WorkspaceRoot>>,
        gate: Arc<AdmissionGate>,
        scratch: impl Into<PathBuf>,
    ) -> Self {
        let scratch = Arc::from(scratch.into());
        Self { root: root.into(), gate, scratch, permits: Arc::new(Semaphore::new(MAX_ARCHIVES)) }
    }

    /// Makes an archive of a folder.
    pub async fn create(
        &self,
        path: RelPath,
        options: CreateOptions,
    ) -> Result<impl Stream<Item = Result<CreateEvent, ArchiveError>> + Send + use<>, ArchiveError> {
        if options.preservation && (options.ignore_files || !options.ignore.is_empty()) {
            return Err(FileError::BadField { field: "preservation", allowed: "without ignore rules" }.into());
        }
        let rules = IgnoreRules::new(&options.ignore, options.ignore_files)?;
        let permit = self.acquire_permit()?;
        let root = self.root.clone();
        let opened = spawn_blocking(move || root.open_directory(&path)).await;
        let dir = opened.map_err(|_| ArchiveError::fault("opening a folder"))??;
        let (events, receiver) = mpsc::channel(EVENT_QUEUE);
        let scratch = self.scratch.clone();
        let work = spawn_blocking(move || {
            // Given up only when the threads are gone, also if the stream goes first.
            let _permit = permit;
            create::create(dir, rules, events, &scratch)
        });
        Ok(event_stream(receiver, work))
    }

    /// Begins to receive a zip that is to be unpacked.
    pub async fn receive(
        &self,
        path: RelPath,
        options: ExtractOptions,
    ) -> Result<ArchiveReceiver, ArchiveError> {
        let permit = self.acquire_permit()?;
        self.admit().await?;
        let scratch = self.scratch.clone();
        let spool = spawn_blocking(move || spool::create(&scratch)).await;
        let spool = spool.map_err(|_| ArchiveError::fault("making a spool"))?.map_err(error::spool_error)?;
        Ok(ArchiveReceiver::new(self.clone(), path, options, spool, permit))
    }

    /// The door: who unpacks means it, and goes on meaning it.
    async fn admit(&self) -> Result<(), Rejection> {
        self.gate.admit(Intent::Restore).await
    }

    /// The same on a thread that does not wait: who is held has begun already, and is asked again in a moment.
    fn recheck_admission(&self) -> Result<(), Rejection> {
        match self.gate.try_admit(Intent::Restore, 0) {
            Ok(()) | Err(AdmitError::Held(_)) => Ok(()),
            Err(AdmitError::Rejected(refused)) => Err(refused),
        }
    }

    /// Unpacks what was received.
    fn extract(
        self,
        path: RelPath,
        replace: bool,
        spool: std::fs::File,
        permit: OwnedSemaphorePermit,
    ) -> impl Stream<Item = Result<ExtractEvent, ArchiveError>> + Send + use<> {
        let (events, receiver) = mpsc::channel(EVENT_QUEUE);
        let work = spawn_blocking(move || {
            let _permit = permit;
            let zip = ZipReader::open(spool)?;
            let sum = inspect::inspect(&zip)?;
            let extraction = Extraction { zip: &zip, root: &self.root, path: &path, replace };
            let admission = || self.recheck_admission();
            let progress = ExtractProgress::new(sum.bytes, &events, &admission);
            extraction.check_destination(sum)?;
            match extraction.verify(&progress).and_then(|()| extraction.write_tree(&progress)) {
                Ok(()) => {}
                Err(ArchiveStop::ReceiverDropped) => return Ok(()),
                Err(ArchiveStop::Failed(error)) => return Err(error),
            }
            // Who does not hear it any more does not want to.
            let _gone = events.blocking_send(ExtractEvent::Done { entries: sum.entries, bytes: sum.bytes });
            Ok(())
        });
        event_stream(receiver, work)
    }

    fn acquire_permit(&self) -> Result<OwnedSemaphorePermit, ArchiveError> {
        let permit = self.permits.clone().try_acquire_owned();
        permit.map_err(|_| ArchiveError::TooManyArchives { limit: MAX_ARCHIVES })
    }
}

/// What the threads said, then how they ended.
fn event_stream<T: Send + 'static>(
    receiver: Receiver<T>,
    work: JoinHandle<Result<(), ArchiveError>>,
) -> impl Stream<Item = Result<T, ArchiveError>> + Send + 'static {
    let said =
        stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) });
    let ended = stream::once(async move {
        work.await.unwrap_or_else(|_| Err(ArchiveError::fault("working on an archive"))).err()
    });
    said.map(Ok).chain(ended.filter_map(|failure| async move { failure.map(Err) }))
}
