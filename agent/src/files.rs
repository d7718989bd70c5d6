//! Client operations on files below the workspace root. Independent of gRPC and HTTP.
//!
//! All work blocks. It runs on the blocking pool in pieces, such as a block of 1 MiB, a page of
//! 1,000 entries, or one step of a removal. If a caller drops an operation, the operation stops
//! after the current piece, and a write leaves nothing behind.

mod change;
mod component_walk;
mod entry;
mod error;
mod list;
mod path;
mod read;
mod remove;
mod root;
mod streamed_write;
mod temp;
mod upload;
mod write;

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{Stream, stream};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::spawn_blocking,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) use self::{
    change::mkdir, entry::unix_system_time, error::map_errno, list::smallest_names, temp::is_temp_file,
};
pub use self::{
    entry::{FileEntry, FileKind},
    error::FileError,
    path::{BadPath, RelPath},
    read::{FileReader, PIECE_BYTES},
    root::{PathResolver, SymlinkMode, WorkspaceRoot},
    streamed_write::StreamedWrite,
    upload::{MAX_UPLOADS, UPLOAD_IDLE_TIMEOUT, UploadProgress},
    write::{WriteOptions, WrittenFile},
};
use self::{list::Listing, remove::Removal, upload::Uploads, write::FileWriter};
use crate::admission::{AdmissionGate, Intent};

/// Files read at once, with 2 MiB of memory each at most. The next request fails with
/// TOO_MANY_STREAMS.
pub const MAX_READERS: usize = 128;
/// Files written by streams at once, with 4 MiB of memory each at most. The next request fails with
/// TOO_MANY_STREAMS.
pub const MAX_WRITERS: usize = 128;
/// Directories listed at once, with about 5 MiB of memory each at most. The next request fails with
/// TOO_MANY_STREAMS.
pub const MAX_LISTINGS: usize = 64;

/// Client operations on the files of the workspace. Clones share one state.
#[derive(Debug, Clone)]
pub struct Files {
    shared: Arc<FilesShared>,
}

#[derive(Debug)]
struct FilesShared {
    root: Arc<WorkspaceRoot>,
    gate: Arc<AdmissionGate>,
    uploads: Uploads,
    readers: Arc<Semaphore>,
    writers: Arc<Semaphore>,
    listings: Arc<Semaphore>,
    /// Each piece of work that changes something holds a token.
    changes: TaskTracker,
}

impl Files {
    /// Serves the files below `root`. [`Files::expire_uploads`] must run beside it.
    pub fn new(root: impl Into<Arc<WorkspaceRoot>>, gate: Arc<AdmissionGate>) -> Self {
        Self::with_upload_idle_timeout(root, gate, UPLOAD_IDLE_TIMEOUT)
    }

    /// Like [`Files::new`], with another idle timeout for uploads than [`UPLOAD_IDLE_TIMEOUT`].
    pub fn with_upload_idle_timeout(
        root: impl Into<Arc<WorkspaceRoot>>,
        gate: Arc<AdmissionGate>,
        upload_idle_timeout: Duration,
    ) -> Self {
        Self {
            shared: Arc::new(FilesShared {
                root: root.into(),
                gate,
                uploads: Uploads::new(upload_idle_timeout),
                readers: Arc::new(Semaphore::new(MAX_READERS)),
                writers: Arc::new(Semaphore::new(MAX_WRITERS)),
                listings: Arc::new(Semaphore::new(MAX_LISTINGS)),
                changes: TaskTracker::new(),
            }),
        }
    }

    /// Removes uploads that were idle for too long, until `stop` is cancelled. Exactly one task
    /// runs this.
    pub async fn expire_uploads(&self, stop: CancellationToken) {
        loop {
            let next = self.shared.uploads.remove_expired();
            let at = next.unwrap_or_else(|| Instant::now() + self.shared.uploads.idle_timeout());
            tokio::select! {
                () = tokio::time::sleep_until(at.into()) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Returns the metadata of an entry.
    pub async fn stat(&self, path: RelPath, links: SymlinkMode) -> Result<FileEntry, FileError> {
        self.run_blocking(move |shared| {
            let fd = shared.root.open_path(&path, links)?;
            let name = path.split().map(|(_, name)| name.to_owned()).unwrap_or_default();
            FileEntry::from_fd(&name, &fd).map_err(error::map_errno("read the metadata of", &path))
        })
        .await
    }

    /// Lists a directory in pages, sorted by name. An empty directory has no page.
    pub async fn list(
        &self,
        path: RelPath,
    ) -> Result<impl Stream<Item = Result<Vec<FileEntry>, FileError>> + Send + use<>, FileError> {
        let permit = acquire_permit(&self.shared.listings, MAX_LISTINGS)?;
        let listing = self.run_blocking(move |shared| Listing::open(&shared.root, path)).await?;
        let start = (self.clone(), listing, permit);
        Ok(stream::try_unfold(start, |(files, mut listing, permit)| async move {
            let work = move |shared: &FilesShared| Ok((listing.page(&shared.root)?, listing));
            let (page, listing) = files.run_blocking(work).await?;
            Ok((!page.is_empty()).then_some((page, (files, listing, permit))))
        }))
    }

    pub async fn read(&self, path: RelPath) -> Result<FileReader, FileError> {
        let permit = acquire_permit(&self.shared.readers, MAX_READERS)?;
        self.run_blocking(move |shared| FileReader::open(&shared.root, path, permit)).await
    }

    /// Starts to write a file from a stream.
    pub async fn write(&self, path: RelPath, options: WriteOptions) -> Result<StreamedWrite, FileError> {
        let permit = acquire_permit(&self.shared.writers, MAX_WRITERS)?;
        self.shared.gate.admit(Intent::ClientWrite).await?;
        let writer = self.run_change(move |shared| FileWriter::open(&shared.root, path, options)).await?;
        Ok(StreamedWrite::new(writer, self.shared.gate.clone(), self.shared.changes.clone(), permit))
    }

    /// Starts an upload in chunks and returns its id.
    pub async fn begin_upload(&self, path: RelPath, options: WriteOptions) -> Result<String, FileError> {
        self.shared.gate.admit(Intent::ClientWrite).await?;
        self.run_change(move |shared| shared.uploads.begin(&shared.root, path, options)).await
    }

    /// Writes the next chunk of an upload.
    pub async fn chunk(
        &self,
        upload: String,
        offset: u64,
        data: Bytes,
        finish: bool,
    ) -> Result<UploadProgress, FileError> {
        self.shared.gate.admit(Intent::ClientWrite).await?;
        let token = self.shared.changes.token();
        self.shared.uploads.chunk(upload, offset, data, finish, token).await
    }

    /// Creates a directory. With `parents` it creates missing ones above it, and an existing
    /// directory is not an error.
    pub async fn mkdir(&self, path: RelPath, mode: Option<u32>, parents: bool) -> Result<(), FileError> {
        self.shared.gate.admit(Intent::ClientWrite).await?;
        self.run_change(move |shared| change::mkdir(&shared.root, &path, mode, parents)).await
    }

    /// Sets the permission bits of a directory.
    pub async fn set_directory_mode(&self, path: RelPath, mode: u32) -> Result<(), FileError> {
        self.shared.gate.admit(Intent::ClientWrite).await?;
        self.run_change(move |shared| change::set_directory_mode(&shared.root, &path, mode)).await
    }

    /// Moves an entry. Replaces an existing target only with `replace`.
    pub async fn rename(&self, from: RelPath, to: RelPath, replace: bool) -> Result<(), FileError> {
        self.shared.gate.admit(Intent::ClientWrite).await?;
        self.run_change(move |shared| change::rename(&shared.root, &from, &to, replace)).await
    }

    /// Removes an entry and returns the number of entries removed.
    pub async fn remove(&self, path: RelPath, recursive: bool) -> Result<u64, FileError> {
        self.shared.gate.admit(Intent::ClientWrite).await?;
        let mut removal =
            self.run_change(move |shared| Removal::begin(&shared.root, path, recursive)).await?;
        loop {
            let done;
            (done, removal) = self.run_change(move |_| Ok((removal.step()?, removal))).await?;
            if let Some(removed) = done {
                return Ok(removed);
            }
            self.shared.gate.admit(Intent::ClientWrite).await?;
        }
    }

    /// Waits for the changes in progress, then syncs the file system of the root. Must be called
    /// after the admission gate has stopped admitting changes.
    pub async fn drain_and_sync(&self) -> io::Result<()> {
        self.shared.changes.close();
        self.shared.changes.wait().await;
        let shared = self.shared.clone();
        spawn_blocking(move || shared.root.sync()).await.map_err(io::Error::other)?
    }

    /// Runs work that changes something. [`Files::drain_and_sync`] waits for it even if its caller
    /// is gone.
    async fn run_change<T: Send + 'static>(
        &self,
        work: impl FnOnce(&FilesShared) -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, FileError> {
        let token = self.shared.changes.token();
        self.run_blocking(move |shared| {
            let _under_way = token;
            work(shared)
        })
        .await
    }

    async fn run_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&FilesShared) -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, FileError> {
        let shared = self.shared.clone();
        let done = spawn_blocking(move || work(&shared)).await;
        done.map_err(|_| FileError::Fault { operation: "working on files" })?
    }
}

fn acquire_permit(permits: &Arc<Semaphore>, limit: usize) -> Result<OwnedSemaphorePermit, FileError> {
    permits.clone().try_acquire_owned().map_err(|_| FileError::TooManyStreams { limit })
}

#[cfg(test)]
mod tests {
    use std::sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    };

    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn drain_waits_for_change_of_gone_caller() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let files = Files::new(WorkspaceRoot::open(dir.path()).expect("workspace root"), Arc::default());
        let (go, wait) = mpsc::channel::<()>();
        let done = Arc::new(AtomicBool::new(false));
        let change = {
            let done = done.clone();
            files.run_change(move |_| {
                let _told = wait.recv();
                done.store(true, Ordering::SeqCst);
                Ok(())
            })
        };
        assert!(change.now_or_never().is_none(), "the change runs without a caller");
        let mut settled = Box::pin(files.drain_and_sync());
        assert!(settled.as_mut().now_or_never().is_none());
        drop(go);
        settled.await.expect("synced");
        assert!(done.load(Ordering::SeqCst));
    }
}
