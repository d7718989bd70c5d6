//! Archives a workspace directory as a standard zip, and extracts zips. Independent of gRPC and
//! HTTP.
//!
//! Separate threads create the zip in bounded memory and stream it in pieces. Dropping the stream
//! stops them. A zip to extract is first received as a whole into an unnamed file and inspected.
//! Only then does extraction write to the workspace.
//!
//! Reading order for creating: `create`, `walk`, `dispatch`, `compress`, `write`. For extracting:
//! `read`, `inspect`, `extract`. `layout` has the byte format.

mod compress;
mod create;
mod decode;
mod deflate;
mod dispatch;
mod error;
mod extract;
mod extract_progress;
mod glob;
mod hard_links;
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
    manifest::{ArchiveProgress, ArchiveSummary, ArchivedEntry, CreateEvent, MAX_SKIPPED, UnarchivedEntry},
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

/// Archives created or extracted at once. The next request fails with TOO_MANY_STREAMS. Creating an
/// archive takes about 50 MiB of memory and a few threads. Extracting one takes memory for each
/// entry (see [`MAX_ENTRIES`]).
pub const MAX_ARCHIVES: usize = 2;
/// Maximum entries of an archive that is created or extracted. A larger archive fails with
/// TOO_LARGE. Inspecting a zip takes about 50 bytes of memory for each entry, so 100 MiB at most.
pub const MAX_ENTRIES: u64 = 2_000_000;
/// Messages queued between the threads and the stream, each 256 KiB at most. When the queue is
/// full, the threads wait.
const EVENT_QUEUE: usize = 8;

#[derive(Debug, Clone, Default)]
pub struct CreateOptions {
    /// Whether the archive must contain everything, so that ignore rules are an error.
    pub preservation: bool,
    /// Patterns in `.gitignore` syntax, relative to the archived directory.
    pub ignore: Vec<Vec<u8>>,
    /// Whether ignore files found in the tree apply too.
    pub ignore_files: bool,
}

#[derive(Debug, Clone, Default)]
pub struct ExtractOptions {
    /// Whether existing files are replaced. If not, they make the extraction fail before it writes.
    pub replace: bool,
    /// Whether setuid and setgid bits are restored.
    pub preservation: bool,
    /// Expected SHA-256 of the whole zip.
    pub sha256: Option<[u8; 32]>,
}

/// A message of the extraction stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtractEvent {
    /// Sent at most once in 250 ms.
    Progress(ArchiveProgress),
    /// Sent once, as the last message.
    Done {
        /// Entries of the zip.
        entries: u64,
        /// Bytes of uncompressed content.
        bytes: u64,
    },
}

/// Creates and extracts archives of the workspace, at most [`MAX_ARCHIVES`] at once. Clones share
/// this limit.
#[derive(Debug, Clone)]
pub struct Archives {
    root: Arc<WorkspaceRoot>,
    gate: Arc<AdmissionGate>,
    /// Directory for unnamed spool files, outside the user's view.
    scratch: Arc<Path>,
    permits: Arc<Semaphore>,
}

impl Archives {
    /// Serves the tree below `root`. Spool files go to the directory `scratch`.
    pub fn new(
        root: impl Into<Arc<WorkspaceRoot>>,
        gate: Arc<AdmissionGate>,
        scratch: impl Into<PathBuf>,
    ) -> Self {
        let scratch = Arc::from(scratch.into());
        Self { root: root.into(), gate, scratch, permits: Arc::new(Semaphore::new(MAX_ARCHIVES)) }
    }

    /// Starts to archive a directory and returns the stream of its zip and manifest.
    pub async fn create(
        &self,
        path: RelPath,
        options: CreateOptions,
    ) -> Result<impl Stream<Item = Result<CreateEvent, ArchiveError>> + Send + use<>, ArchiveError> {
        if options.preservation && (options.ignore_files || !options.ignore.is_empty()) {
            return Err(FileError::BadField {
                field: "preservation",
                allowed: "false if ignore rules are given",
            }
            .into());
        }
        let rules = IgnoreRules::new(&options.ignore, options.ignore_files)?;
        let permit = self.acquire_permit()?;
        let root = self.root.clone();
        let opened = spawn_blocking(move || root.open_directory(&path)).await;
        let dir = opened.map_err(|_| ArchiveError::fault("opening a directory"))??;
        let (events, receiver) = mpsc::channel(EVENT_QUEUE);
        let scratch = self.scratch.clone();
        let work = spawn_blocking(move || {
            // Released only when the threads have ended, even if the stream is dropped first.
            let _permit = permit;
            create::create(dir, rules, options.preservation, events, &scratch)
        });
        Ok(event_stream(receiver, work))
    }

    /// Starts to receive a zip for extraction into `path`.
    pub async fn receive(
        &self,
        path: RelPath,
        options: ExtractOptions,
    ) -> Result<ArchiveReceiver, ArchiveError> {
        let permit = self.acquire_permit()?;
        self.admit().await?;
        let scratch = self.scratch.clone();
        let spool = spawn_blocking(move || spool::create(&scratch)).await;
        let spool =
            spool.map_err(|_| ArchiveError::fault("creating a spool file"))?.map_err(error::spool_error)?;
        Ok(ArchiveReceiver::new(self.clone(), path, options, spool, permit))
    }

    /// Waits until the admission gate admits a restore. Extraction counts as client intent while it
    /// lasts.
    async fn admit(&self) -> Result<(), Rejection> {
        self.gate.admit(Intent::Restore).await
    }

    /// Checks the admission gate again without waiting. A held extraction continues, because it
    /// began before the hold. The next progress report checks again.
    fn recheck_admission(&self) -> Result<(), Rejection> {
        match self.gate.try_admit(Intent::Restore, 0) {
            Ok(()) | Err(AdmitError::Held(_)) => Ok(()),
            Err(AdmitError::Rejected(refused)) => Err(refused),
        }
    }

    /// Extracts the received zip into `path`.
    fn extract(
        self,
        path: RelPath,
        options: &ExtractOptions,
        spool: std::fs::File,
        permit: OwnedSemaphorePermit,
    ) -> impl Stream<Item = Result<ExtractEvent, ArchiveError>> + Send + use<> {
        let (events, receiver) = mpsc::channel(EVENT_QUEUE);
        let (replace, preservation) = (options.replace, options.preservation);
        let work = spawn_blocking(move || {
            let _permit = permit;
            let zip = ZipReader::open(spool)?;
            let sum = inspect::inspect(&zip)?;
            let extraction = Extraction { zip: &zip, root: &self.root, path: &path, replace, preservation };
            let admission = || self.recheck_admission();
            let progress = ExtractProgress::new(sum.bytes, &events, &admission);
            extraction.check_destination(sum)?;
            match extraction.verify(&progress).and_then(|()| extraction.write_tree(&progress)) {
                Ok(()) => {}
                Err(ArchiveStop::ReceiverDropped) => return Ok(()),
                Err(ArchiveStop::Failed(error)) => return Err(error),
            }
            // The client may have dropped the stream. The extraction is complete in any case.
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

/// Yields the messages of the threads, then the error they ended with, if any.
fn event_stream<T: Send + 'static>(
    receiver: Receiver<T>,
    work: JoinHandle<Result<(), ArchiveError>>,
) -> impl Stream<Item = Result<T, ArchiveError>> + Send + 'static {
    let messages =
        stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) });
    let failure = stream::once(async move {
        work.await.unwrap_or_else(|_| Err(ArchiveError::fault("working on an archive"))).err()
    });
    messages.map(Ok).chain(failure.filter_map(|error| async move { error.map(Err) }))
}
