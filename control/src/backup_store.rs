//! The backup store: where archives of workspaces are written, proven, listed, read and removed.
//!
//! A backup is two objects: a standard zip, and a sidecar that says what it is of and what should be in it. The zip
//! shows last and goes first, and what is listed has both: half a backup is never taken for one.
//!
//! It knows bytes, keys and manifests. It must not know the driver, links to agents, or why something is archived.

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::{Stream, stream};
use object_store::ObjectStore;
use podling_core::id::WorkspaceId;
use podling_proto::agent::v1::CreateArchiveResponse;
use tokio::io::AsyncReadExt;

#[cfg(feature = "cloud")]
mod cloud;
mod digest;
mod error;
mod key;
mod limits;
mod list;
mod local_dir;
mod location;
mod manifest;
mod multipart;
mod prove;
mod sidecar;
mod spool;
mod write;

pub use digest::{InvalidDigest, Sha256Digest};
pub use error::{BackupStoreError, EscapedName, IncompleteReasons, OpenStoreError};
pub use key::{InvalidStoreKey, StoreKey};
pub use limits::ArchiveLimits;
pub use prove::ArchiveProof;
pub use sidecar::{ArchiveLabel, ArchiveSidecar};

use limits::{BLOCK_BYTES, MAX_KEY_ATTEMPTS};
use location::{StagedObject, StorageLocation};
use spool::{ManifestSpool, SpooledManifest};
use write::ReceivedArchive;

/// The backup store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct BackupStore {
    shared: Arc<StoreState>,
}

#[derive(Debug)]
struct StoreState {
    place: StorageLocation,
    scratch: PathBuf,
    limits: ArchiveLimits,
    /// Keys that are being written.
    reserved_keys: Mutex<HashSet<StoreKey>>,
    /// Objects of others that have been spoken of.
    reported_objects: Mutex<HashSet<String>>,
}

/// How far a write is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceiveProgress {
    /// Entries that the agent has read.
    pub entries: u64,
    /// Content that the agent has read, in bytes.
    pub bytes: u64,
    /// Content there was when it began, in bytes; 0: not counted yet.
    pub total_bytes: u64,
    /// Of the zip that has arrived.
    pub archive_bytes: u64,
}

/// What has been written, and waits for its proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenArchive {
    /// Which backup it is.
    pub key: StoreKey,
    /// Lines of the manifest.
    pub entries: u64,
    /// Of content, in bytes.
    pub bytes: u64,
    /// Of the zip, in bytes.
    pub archive_bytes: u64,
    /// Of the zip.
    pub sha256: Sha256Digest,
}

/// Nobody else writes this key meanwhile.
#[derive(Debug)]
struct KeyReservation {
    key: StoreKey,
    shared: Arc<StoreState>,
}

impl Drop for KeyReservation {
    fn drop(&mut self) {
        self.shared.reserved_keys.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

impl BackupStore {
    /// Opens the store at `url`: `file:///absolute/folder` (made if its parent is there), or with the feature "cloud" `s3://bucket/prefix`,
    /// `gs://…` or `az://…`. Manifests wait in the folder `scratch`, which has to be there.
    pub fn open(url: &str, scratch: PathBuf) -> Result<Self, OpenStoreError> {
        Ok(Self::at(StorageLocation::open(url)?, scratch))
    }

    /// Below `prefix` in any object store; `name` is for people.
    pub fn over(
        store: Arc<dyn ObjectStore>,
        prefix: object_store::path::Path,
        name: &str,
        scratch: PathBuf,
    ) -> Self {
        Self::at(StorageLocation::objects(store, prefix, name), scratch)
    }

    fn at(place: StorageLocation, scratch: PathBuf) -> Self {
        let (reserved_keys, reported_objects) = Default::default();
        Self {
            shared: Arc::new(StoreState {
                place,
                scratch,
                limits: ArchiveLimits::default(),
                reserved_keys,
                reported_objects,
            }),
        }
    }

    /// With other bounds.
    #[must_use]
    pub fn with_limits(self, limits: ArchiveLimits) -> Self {
        let (place, scratch) = (self.shared.place.clone(), self.shared.scratch.clone());
        let (reserved_keys, reported_objects) = Default::default();
        Self { shared: Arc::new(StoreState { place, scratch, limits, reserved_keys, reported_objects }) }
    }

    /// Writes the archive that an agent streams, under a key that is free. It shows only when it is whole: if the stream is cut, or what
    /// came is not what the agent says, nothing is left. (If this is dropped, a bucket may keep parts that do not show: see `objects`.)
    pub async fn write(
        &self,
        label: &ArchiveLabel,
        stream: impl Stream<Item = Result<CreateArchiveResponse, tonic::Status>> + Send,
        progress: impl Fn(ReceiveProgress) + Send,
    ) -> Result<WrittenArchive, BackupStoreError> {
        label.check()?;
        let reservation = self.reserve_key(&label.id).await?;
        let place = &self.shared.place;
        let spool = ManifestSpool::new(&self.shared.scratch).await?;
        let mut zip = place.upload(&reservation.key.zip()).await?;
        let received = match write::receive(stream, &mut zip, spool, &self.shared.limits, progress).await {
            Ok(received) => received,
            Err(error) => {
                zip.discard().await;
                return Err(error);
            }
        };
        let zip = zip.stage().await?;
        let ReceivedArchive { spool, entries, bytes, archive_bytes, sha256 } = received;
        let key = reservation.key.clone();
        let sidecar = ArchiveSidecar { key, label: label.clone(), archive_bytes, sha256, entries, bytes };
        let sidecar = match self.stage(&sidecar, spool).await {
            Ok(staged) => staged,
            Err(error) => {
                zip.discard().await;
                return Err(error);
            }
        };
        // The zip comes last, so that whatever happens in between leaves no archive that nobody knows of.
        if let Err(error) = sidecar.publish().await {
            zip.discard().await;
            return Err(error);
        }
        if let Err(error) = zip.publish().await {
            if let Err(error) = place.remove(&reservation.key.sidecar()).await {
                tracing::warn!(%error, backup = %reservation.key, "a sidecar without its archive could not be removed");
            }
            return Err(error);
        }
        Ok(WrittenArchive { key: reservation.key.clone(), entries, bytes, archive_bytes, sha256 })
    }

    /// A key that nobody has: of this second, or of the next that is free.
    async fn reserve_key(&self, id: &WorkspaceId) -> Result<KeyReservation, BackupStoreError> {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or(Duration::ZERO).as_secs();
        let mut key = StoreKey::new(id.clone(), now);
        for _ in 0..MAX_KEY_ATTEMPTS {
            let free =
                self.shared.reserved_keys.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone());
            if free {
                let reservation = KeyReservation { key: key.clone(), shared: self.shared.clone() };
                let place = &self.shared.place;
                if !place.exists(&key.zip()).await? && !place.exists(&key.sidecar()).await? {
                    return Ok(reservation);
                }
            }
            key = key.next();
        }
        let source = format!("the {MAX_KEY_ATTEMPTS} seconds from now have one already").into();
        let place = self.shared.place.name().to_owned();
        Err(BackupStoreError::Unreachable { place, doing: format!("naming a backup of {id}"), source })
    }

    /// Stores the sidecar so that only its name is missing.
    async fn stage(
        &self,
        sidecar: &ArchiveSidecar,
        spool: ManifestSpool,
    ) -> Result<StagedObject, BackupStoreError> {
        let SpooledManifest { mut file, sum, has_duplicates } = spool.finish().await?;
        if has_duplicates {
            return Err(BackupStoreError::incomplete("two entries have the same name"));
        }
        let header = sidecar::encode_header(sidecar, sum)?;
        let mut upload = self.shared.place.upload(&sidecar.key.sidecar()).await?;
        let mut block = vec![0; BLOCK_BYTES / 4];
        let mut written = upload.write(&header).await;
        while written.is_ok() {
            match file.read(&mut block).await {
                Ok(0) => return upload.stage().await,
                Ok(count) => written = upload.write(&block[..count]).await,
                Err(error) => {
                    let scratch = format!("the scratch folder {}", self.shared.scratch.display());
                    written = Err(BackupStoreError::io(&scratch, "reading the manifest back", error));
                }
            }
        }
        upload.discard().await;
        written.and(Err(BackupStoreError::incomplete("its manifest could not be read back")))
    }

    /// Law 6: reads the stored objects back, decodes every entry of the zip and compares it with the manifest, none missing and none more,
    /// and the digests of both objects.
    pub async fn prove(&self, written: &StoreKey) -> Result<ArchiveProof, BackupStoreError> {
        self.prove_with_progress(written, |_, _| {}).await
    }

    /// The same, and says how far it is: so many bytes of the zip are read, of so many.
    pub async fn prove_with_progress(
        &self,
        written: &StoreKey,
        progress: impl Fn(u64, u64) + Send,
    ) -> Result<ArchiveProof, BackupStoreError> {
        prove::prove(&self.shared.place, written, progress).await
    }

    /// Of the zip, in bytes.
    pub async fn size(&self, key: &StoreKey) -> Result<u64, BackupStoreError> {
        self.shared.place.size(&key.zip()).await
    }

    /// The zip from its beginning, in blocks of at most 1 MiB.
    pub fn read(&self, key: &StoreKey) -> impl Stream<Item = Result<Bytes, BackupStoreError>> + Send + use<> {
        let (shared, object) = (self.shared.clone(), key.zip());
        stream::try_unfold((0, None), move |(at, size)| {
            let (shared, object) = (shared.clone(), object.clone());
            async move {
                let size = match size {
                    Some(size) => size,
                    None => shared.place.size(&object).await?,
                };
                let block = shared.place.range(&object, at..size.min(at + BLOCK_BYTES as u64)).await?;
                let next = at + block.len() as u64;
                Ok((!block.is_empty()).then_some((block, (next, Some(size)))))
            }
        })
    }

    /// Removes a backup; it is gone afterwards, also when it was before. The zip goes first: if this is interrupted, what is left is a
    /// small sidecar that is not listed and cannot be proven, and the same call removes it.
    pub async fn remove(&self, key: &StoreKey) -> Result<(), BackupStoreError> {
        self.shared.place.remove(&key.zip()).await?;
        self.shared.place.remove(&key.sidecar()).await
    }
}
