//! Writes objects to a bucket in parts. An object becomes visible when its upload is completed. A
//! program that is killed leaves invisible parts, which cost money. Operators should configure the
//! bucket to abort unfinished uploads after a day.

use bytes::BytesMut;
use object_store::MultipartUpload;
use tokio::task::JoinSet;

use super::{error::BackupStoreError, limits::PART_BYTES};

/// An object that is being written. The caller must complete or abort it.
#[derive(Debug)]
pub(super) struct MultipartWriter {
    location: String,
    name: String,
    upload: Box<dyn MultipartUpload>,
    part: BytesMut,
    /// The upload of the previous part, if it is not finished.
    in_flight: JoinSet<object_store::Result<()>>,
}

impl MultipartWriter {
    pub(super) fn new(location: &str, name: &str, upload: Box<dyn MultipartUpload>) -> Self {
        let (location, name) = (location.to_owned(), name.to_owned());
        Self { location, name, upload, part: BytesMut::new(), in_flight: JoinSet::new() }
    }

    pub(super) async fn write(&mut self, mut bytes: &[u8]) -> Result<(), BackupStoreError> {
        while !bytes.is_empty() {
            if self.part.capacity() == 0 {
                self.part.reserve(PART_BYTES);
            }
            let (now, later) = bytes.split_at(bytes.len().min(PART_BYTES - self.part.len()));
            self.part.extend_from_slice(now);
            bytes = later;
            if self.part.len() == PART_BYTES {
                self.send().await?;
            }
        }
        Ok(())
    }

    /// Waits until the previous part is uploaded, then starts to upload the current one.
    async fn send(&mut self) -> Result<(), BackupStoreError> {
        self.wait_for_part().await?;
        let part = std::mem::take(&mut self.part).freeze();
        self.in_flight.spawn(self.upload.put_part(part.into()));
        Ok(())
    }

    async fn wait_for_part(&mut self) -> Result<(), BackupStoreError> {
        while let Some(part) = self.in_flight.join_next().await {
            part.unwrap_or_else(|error| Err(error.into())).map_err(|error| self.failed(error))?;
        }
        Ok(())
    }

    /// Uploads the last part and waits until all parts are uploaded.
    pub(super) async fn stage(&mut self) -> Result<(), BackupStoreError> {
        if !self.part.is_empty() {
            self.send().await?;
        }
        self.wait_for_part().await
    }

    /// Makes the object visible.
    pub(super) async fn complete(&mut self) -> Result<(), BackupStoreError> {
        self.upload.complete().await.map(|_| ()).map_err(|error| self.failed(error))
    }

    pub(super) async fn abort(mut self) {
        self.in_flight.shutdown().await;
        if let Err(error) = self.upload.abort().await {
            tracing::warn!(%error, object = self.name, "failed to abort unfinished upload");
        }
    }

    fn failed(&self, error: object_store::Error) -> BackupStoreError {
        BackupStoreError::store(&self.location, "writing", &self.name, error)
    }
}
