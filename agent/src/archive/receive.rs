//! Receives a zip into an unnamed file. The disk writes one piece while the next one arrives.

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
    error::{ArchiveError, spool_error},
    write::sha256,
};
use crate::files::{FileError, RelPath};

/// Bytes gathered before they are written. The stream then waits for the previous write.
const GATHER_BYTES: usize = 1024 * 1024;

/// Receives the bytes of a zip for extraction. Dropping it deletes the received bytes.
#[derive(Debug)]
pub struct ArchiveReceiver {
    archives: Archives,
    path: RelPath,
    options: ExtractOptions,
    spool_state: SpoolState,
    gathered: Vec<Bytes>,
    bytes: usize,
    permit: OwnedSemaphorePermit,
}

/// The spool file and the hash of its content so far.
struct HashedSpool {
    file: File,
    digest: Context,
}

enum SpoolState {
    Idle(Box<HashedSpool>),
    Busy(JoinHandle<Result<Box<HashedSpool>, ArchiveError>>),
    Failed,
}

impl ArchiveReceiver {
    pub(super) fn new(
        archives: Archives,
        path: RelPath,
        options: ExtractOptions,
        file: File,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        let spool_state = SpoolState::Idle(Box::new(HashedSpool { file, digest: Context::new(&SHA256) }));
        Self { archives, path, options, spool_state, gathered: Vec::new(), bytes: 0, permit }
    }

    /// Takes the next piece. Waits while `GATHER_BYTES` are gathered and the previous write is in
    /// progress.
    pub async fn push(&mut self, data: Bytes) -> Result<(), ArchiveError> {
        if data.is_empty() {
            return Ok(());
        }
        self.bytes += data.len();
        self.gathered.push(data);
        if self.bytes < GATHER_BYTES {
            return Ok(());
        }
        self.archives.admit().await?;
        let spool = self.wait_idle().await?;
        self.spool_state = SpoolState::Busy(self.write(spool));
        Ok(())
    }

    /// Checks the hash of the received zip, then extracts it.
    pub async fn extract(
        mut self,
    ) -> Result<impl Stream<Item = Result<ExtractEvent, ArchiveError>> + Send + use<>, ArchiveError> {
        self.archives.admit().await?;
        let spool = self.wait_idle().await?;
        let written = self.write(spool).await;
        let HashedSpool { file, digest } = *written.map_err(|_| FAULT)??;
        let got = sha256(digest);
        if let Some(promised) = self.options.sha256.filter(|promised| *promised != got) {
            let (promised, got) = (hex(&promised), hex(&got));
            return Err(FileError::DigestMismatch { path: "the zip".to_owned(), promised, got }.into());
        }
        Ok(self.archives.extract(self.path, &self.options, file, self.permit))
    }

    fn write(&mut self, mut spool: Box<HashedSpool>) -> JoinHandle<Result<Box<HashedSpool>, ArchiveError>> {
        self.bytes = 0;
        let gathered = std::mem::take(&mut self.gathered);
        spawn_blocking(move || {
            for data in gathered {
                spool.digest.update(&data);
                spool.file.write_all(&data).map_err(spool_error)?;
            }
            Ok(spool)
        })
    }

    async fn wait_idle(&mut self) -> Result<Box<HashedSpool>, ArchiveError> {
        if let SpoolState::Busy(job) = &mut self.spool_state {
            let done = job.await.map_err(|_| FAULT);
            self.spool_state = SpoolState::Failed;
            return done?;
        }
        match std::mem::replace(&mut self.spool_state, SpoolState::Failed) {
            SpoolState::Idle(spool) => Ok(spool),
            SpoolState::Busy(_) | SpoolState::Failed => Err(FAULT),
        }
    }
}

const FAULT: ArchiveError = ArchiveError::File(FileError::Fault { operation: "receiving an archive" });

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl std::fmt::Debug for SpoolState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Idle(_) => "Idle",
            Self::Busy(_) => "Busy",
            Self::Failed => "Failed",
        })
    }
}
