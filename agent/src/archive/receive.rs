//! Receives a zip into a file without a name: the disk works on one piece while the next arrives.

use std::{fs::File, io::Write};

use bytes::Bytes;
use futures_util::Stream;
use ring::digest::{Context, SHA256};
use tokio::{
    sync::OwnedSemaphorePermit,
    task::{JoinHandle, spawn_blocking},
};

use super::{
    Archives, ExtractEvent, ExtractOptions,
    error::{ArchiveError, spooling},
    write::sha256,
};
use crate::files::{FileError, RelPath};

/// Bytes gathered while the disk is busy; then the stream waits for it.
const GATHER: usize = 1024 * 1024;

/// A zip on its way here. Dropped, it leaves nothing.
#[derive(Debug)]
pub struct ArchiveReceiver {
    archives: Archives,
    path: RelPath,
    options: ExtractOptions,
    disk: Disk,
    gathered: Vec<Bytes>,
    bytes: usize,
    place: OwnedSemaphorePermit,
}

/// The file and what it hashes to so far.
struct Spool {
    file: File,
    digest: Context,
}

enum Disk {
    Idle(Box<Spool>),
    Busy(JoinHandle<Result<Box<Spool>, ArchiveError>>),
    Failed,
}

impl ArchiveReceiver {
    pub(super) fn new(
        archives: Archives,
        path: RelPath,
        options: ExtractOptions,
        file: File,
        place: OwnedSemaphorePermit,
    ) -> Self {
        let disk = Disk::Idle(Box::new(Spool { file, digest: Context::new(&SHA256) }));
        Self { archives, path, options, disk, gathered: Vec::new(), bytes: 0, place }
    }

    /// Takes the next piece; waits when the disk is behind.
    pub async fn push(&mut self, data: Bytes) -> Result<(), ArchiveError> {
        if data.is_empty() {
            return Ok(());
        }
        self.bytes += data.len();
        self.gathered.push(data);
        if self.bytes < GATHER {
            return Ok(());
        }
        self.archives.admit().await?;
        let spool = self.idle().await?;
        self.disk = Disk::Busy(self.write(spool));
        Ok(())
    }

    /// It is whole: checks and unpacks it.
    pub async fn unpack(
        mut self,
    ) -> Result<impl Stream<Item = Result<ExtractEvent, ArchiveError>> + Send + use<>, ArchiveError> {
        self.archives.admit().await?;
        let spool = self.idle().await?;
        let written = self.write(spool).await;
        let Spool { file, digest } = *written.map_err(|_| FAULT)??;
        let got = sha256(digest);
        if let Some(promised) = self.options.sha256.filter(|promised| *promised != got) {
            let (promised, got) = (hex(&promised), hex(&got));
            return Err(FileError::DigestMismatch { path: "the zip".to_owned(), promised, got }.into());
        }
        Ok(self.archives.unpack(self.path, self.options.replace, file, self.place))
    }

    fn write(&mut self, mut spool: Box<Spool>) -> JoinHandle<Result<Box<Spool>, ArchiveError>> {
        self.bytes = 0;
        let gathered = std::mem::take(&mut self.gathered);
        spawn_blocking(move || {
            for data in gathered {
                spool.digest.update(&data);
                spool.file.write_all(&data).map_err(spooling)?;
            }
            Ok(spool)
        })
    }

    async fn idle(&mut self) -> Result<Box<Spool>, ArchiveError> {
        if let Disk::Busy(job) = &mut self.disk {
            let done = job.await.map_err(|_| FAULT);
            self.disk = Disk::Failed;
            return done?;
        }
        match std::mem::replace(&mut self.disk, Disk::Failed) {
            Disk::Idle(spool) => Ok(spool),
            Disk::Busy(_) | Disk::Failed => Err(FAULT),
        }
    }
}

const FAULT: ArchiveError = ArchiveError::File(FileError::Fault { operation: "receiving an archive" });

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Idle(_) => "Idle",
            Self::Busy(_) => "Busy",
            Self::Failed => "Failed",
        })
    }
}
