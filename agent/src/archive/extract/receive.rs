//! Receives a zip into an unnamed file. The disk writes one piece while the next one arrives.

use std::{fs::File, io::Write};

use bytes::Bytes;
use futures_util::Stream;
use ring::digest::{Context, SHA256};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::task::TaskTracker;

use crate::{
    archive::{ArchiveError, Archives, ExtractEvent, ExtractOptions, spool_error},
    files::{FileError, RelPath, WriteBehind},
    util::{finish_sha256, hex},
};

/// Receives the bytes of a zip for extraction. Dropping it deletes the received bytes.
#[derive(Debug)]
pub struct ArchiveReceiver {
    archives: Archives,
    path: RelPath,
    options: ExtractOptions,
    content: WriteBehind<HashedSpool>,
    permit: OwnedSemaphorePermit,
}

/// The spool file and the hash of its content so far.
struct HashedSpool {
    file: File,
    digest: Context,
}

impl ArchiveReceiver {
    pub(in crate::archive) fn new(
        archives: Archives,
        path: RelPath,
        options: ExtractOptions,
        file: File,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        let spool = HashedSpool { file, digest: Context::new(&SHA256) };
        let content = WriteBehind::new(spool, HashedSpool::write, TaskTracker::new(), "receiving an archive");
        Self { archives, path, options, content, permit }
    }

    /// Takes the next piece. Waits while `GATHER_BYTES` are gathered and the
    /// previous write is in progress.
    pub async fn push(&mut self, data: Bytes) -> Result<(), ArchiveError> {
        if data.is_empty() || !self.content.gather(data) {
            return Ok(());
        }
        self.archives.admit().await?;
        Ok(self.content.flush().await?)
    }

    /// Checks the hash of the received zip, then extracts it.
    pub async fn extract(
        self,
    ) -> Result<impl Stream<Item = Result<ExtractEvent, ArchiveError>> + Send + use<>, ArchiveError> {
        self.archives.admit().await?;
        let HashedSpool { file, digest } = self.content.finish(Ok).await?;
        let got = finish_sha256(digest);
        if let Some(promised) = self.options.sha256.filter(|promised| *promised != got) {
            let (promised, got) = (hex(&promised), hex(&got));
            return Err(FileError::DigestMismatch { path: "the zip".to_owned(), promised, got }.into());
        }
        Ok(self.archives.extract(self.path, self.options, file, self.permit))
    }
}

impl HashedSpool {
    fn write(&mut self, data: &[u8]) -> Result<(), FileError> {
        self.digest.update(data);
        self.file.write_all(data).map_err(spool_error)
    }
}
