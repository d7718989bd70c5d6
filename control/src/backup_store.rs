//! The backup store: writes, proves, lists, reads and removes archives of workspaces.
//!
//! An archive consists of two objects: a standard zip, and a sidecar with its label and manifest.
//! The zip is published last and removed first, and a listing needs both objects. An archive that
//! is not completely written or removed is therefore never listed.
//!
//! The store handles bytes, keys and manifests. It is independent of the driver, of agents, and of
//! the reason for an archive.

mod error;
mod key;
mod location;
mod prove;
mod sidecar;
mod write;

use std::{
    collections::HashSet,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use object_store::ObjectStore;
use podling_core::id::WorkspaceId;
use podling_proto::agent::v1::CreateArchiveResponse;
use tokio::{io::AsyncReadExt, task::spawn_blocking};

pub use self::{
    error::{BackupStoreError, EscapedName, IncompleteReasons, OpenStoreError},
    key::{InvalidStoreKey, StoreKey},
    prove::ArchiveProof,
    sidecar::{ArchiveLabel, ArchiveSidecar, InvalidDigest, Sha256Digest},
};
use self::{
    location::{PART_PREFIX, StagedObject, StorageLocation},
    write::{ManifestSpool, ReceivedArchive, SpooledManifest},
};

/// Number of unknown objects that are logged, each once. Further ones are not logged.
const MAX_REPORTED_OBJECTS: usize = 1000;
/// Number of seconds that are tried for an unused key. If all are used, the write fails and may be
/// retried.
const MAX_KEY_ATTEMPTS: usize = 60;
/// Largest number of objects in one listing. A longer listing fails, so that callers never take a
/// partial listing for a complete one.
const MAX_LISTED_OBJECTS: usize = 200_000;
/// Size of one write to a local directory, in bytes.
const BLOCK_BYTES: usize = 1024 * 1024;
const GIB: u64 = 1024 * 1024 * 1024;
/// Sidecars that a listing reads concurrently.
const CONCURRENT_HEAD_READS: usize = 8;

/// Reads and writes archives in one location. Cheap to clone; clones share their state.
#[derive(Debug, Clone)]
pub struct BackupStore {
    shared: Arc<StoreState>,
}

#[derive(Debug)]
struct StoreState {
    location: StorageLocation,
    scratch: PathBuf,
    limits: ArchiveLimits,
    /// Keys of archives that are being written.
    reserved_keys: Mutex<HashSet<StoreKey>>,
    /// Names of unknown objects that have been logged.
    reported_objects: Mutex<HashSet<String>>,
}

/// Progress of writing an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceiveProgress {
    pub entries: u64,
    /// Content that the agent has read, in bytes.
    pub bytes: u64,
    /// All content that the agent found when it began the archive, in bytes; 0 until the agent has
    /// counted it.
    pub total_bytes: u64,
    /// Bytes of the zip that have arrived.
    pub archive_bytes: u64,
}

/// An archive that is stored but not proven yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenArchive {
    pub key: StoreKey,
    /// Entries in the manifest.
    pub entries: u64,
    /// Size of all content, in bytes.
    pub bytes: u64,
    /// Size of the zip, in bytes.
    pub archive_bytes: u64,
    /// Digest of the zip.
    pub sha256: Sha256Digest,
}

/// A key that is reserved for one writer. Released on drop.
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
    /// Opens the store at `url`, which is `file:///absolute/directory`, or with the feature "cloud"
    /// `s3://bucket/prefix`, `gs://…` or `az://…`. Creates a missing directory if its parent
    /// exists. Manifests are spooled in the directory `scratch`, which must exist.
    pub fn open(url: &str, scratch: PathBuf) -> Result<Self, OpenStoreError> {
        Ok(Self::at(StorageLocation::open(url)?, scratch, ArchiveLimits::default()))
    }

    /// Creates a backup store below `prefix` of any object store. Errors refer to it as `name`.
    pub fn over(
        store: Arc<dyn ObjectStore>,
        prefix: object_store::path::Path,
        name: &str,
        scratch: PathBuf,
    ) -> Self {
        Self::at(StorageLocation::objects(store, prefix, name), scratch, ArchiveLimits::default())
    }

    fn at(location: StorageLocation, scratch: PathBuf, limits: ArchiveLimits) -> Self {
        let (reserved_keys, reported_objects) = Default::default();
        Self { shared: Arc::new(StoreState { location, scratch, limits, reserved_keys, reported_objects }) }
    }

    #[must_use]
    pub fn with_limits(self, limits: ArchiveLimits) -> Self {
        Self::at(self.shared.location.clone(), self.shared.scratch.clone(), limits)
    }

    /// Writes an archive from an agent's stream under a new key. The archive becomes visible only
    /// when it is complete. If the stream breaks, or differs from the agent's final report, nothing
    /// remains. If this future is dropped, invisible parts may remain in a bucket (see
    /// `multipart`).
    pub async fn write(
        &self,
        label: &ArchiveLabel,
        stream: impl Stream<Item = Result<CreateArchiveResponse, tonic::Status>> + Send,
        progress: impl Fn(ReceiveProgress) + Send,
    ) -> Result<WrittenArchive, BackupStoreError> {
        label.check()?;
        let reservation = self.reserve_key(&label.id).await?;
        let location = &self.shared.location;
        let spool = ManifestSpool::new(&self.shared.scratch).await?;
        let mut zip = location.upload(&reservation.key.zip()).await?;
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
        // The zip is published last, so that no failure leaves a zip without its sidecar.
        if let Err(error) = sidecar.publish().await {
            zip.discard().await;
            return Err(error);
        }
        if let Err(error) = zip.publish().await {
            if let Err(error) = location.remove(&reservation.key.sidecar()).await {
                tracing::warn!(%error, archive = %reservation.key, "failed to remove a sidecar without zip");
            }
            return Err(error);
        }
        Ok(WrittenArchive { key: reservation.key.clone(), entries, bytes, archive_bytes, sha256 })
    }

    /// Reserves the key of the current second, or of the next second that has no archive yet.
    async fn reserve_key(&self, id: &WorkspaceId) -> Result<KeyReservation, BackupStoreError> {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or(Duration::ZERO).as_secs();
        let mut key = StoreKey::new(id.clone(), now);
        for _ in 0..MAX_KEY_ATTEMPTS {
            let free =
                self.shared.reserved_keys.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone());
            if free {
                let reservation = KeyReservation { key: key.clone(), shared: self.shared.clone() };
                let location = &self.shared.location;
                if !location.exists(&key.zip()).await? && !location.exists(&key.sidecar()).await? {
                    return Ok(reservation);
                }
            }
            key = key.next();
        }
        Err(BackupStoreError::KeysTaken { location: self.shared.location.name().to_owned(), id: id.clone() })
    }

    /// Stores the complete sidecar, which stays invisible until it is published.
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
        let mut upload = self.shared.location.upload(&sidecar.key.sidecar()).await?;
        let mut block = vec![0; BLOCK_BYTES / 4];
        let mut written = upload.write(&header).await;
        while written.is_ok() {
            match file.read(&mut block).await {
                Ok(0) => return upload.stage().await,
                Ok(count) => written = upload.write(&block[..count]).await,
                Err(error) => {
                    let scratch = format!("the scratch directory {}", self.shared.scratch.display());
                    written = Err(BackupStoreError::io(&scratch, "reading the manifest back", error));
                }
            }
        }
        upload.discard().await;
        written.and(Err(BackupStoreError::incomplete("its manifest could not be read back")))
    }

    /// Proves an archive. Reads both stored objects back, decodes every entry of the zip, and
    /// compares entries and digests with the manifest, in both directions.
    pub async fn prove(&self, written: &StoreKey) -> Result<ArchiveProof, BackupStoreError> {
        self.prove_with_progress(written, |_, _| {}).await
    }

    /// Proves an archive like [`Self::prove`]. Calls `progress` with the bytes of the zip that have
    /// been read, and with the zip's size.
    pub async fn prove_with_progress(
        &self,
        written: &StoreKey,
        progress: impl Fn(u64, u64) + Send,
    ) -> Result<ArchiveProof, BackupStoreError> {
        prove::prove(&self.shared.location, written, progress).await
    }

    /// Returns the size of the zip, in bytes.
    pub async fn size(&self, key: &StoreKey) -> Result<u64, BackupStoreError> {
        self.shared.location.size(&key.zip()).await
    }

    /// Streams the zip in blocks of at most 1 MiB.
    pub fn read(&self, key: &StoreKey) -> impl Stream<Item = Result<Bytes, BackupStoreError>> + Send + use<> {
        let (shared, object) = (self.shared.clone(), key.zip());
        stream::try_unfold((0, None), move |(at, size)| {
            let (shared, object) = (shared.clone(), object.clone());
            async move {
                let size = match size {
                    Some(size) => size,
                    None => shared.location.size(&object).await?,
                };
                let block = shared.location.range(&object, at..size.min(at + BLOCK_BYTES as u64)).await?;
                let next = at + block.len() as u64;
                Ok((!block.is_empty()).then_some((block, (next, Some(size)))))
            }
        })
    }

    /// Removes an archive. Succeeds if it does not exist. Removes the zip first. If the removal is
    /// interrupted, only a small sidecar remains, which is neither listed nor provable. A repeated
    /// call removes it.
    pub async fn remove(&self, key: &StoreKey) -> Result<(), BackupStoreError> {
        self.shared.location.remove(&key.zip()).await?;
        self.shared.location.remove(&key.sidecar()).await
    }

    /// Returns all archives as their sidecars describe them, sorted by workspace and age, oldest
    /// first. Unknown, incomplete and unreadable objects are skipped and logged once.
    pub async fn list(&self) -> Result<Vec<ArchiveSidecar>, BackupStoreError> {
        let names = self.shared.location.names().await?;
        let mut keys = Vec::new();
        for name in &names {
            let key =
                name.rsplit_once('.').and_then(|(key, kind)| Some((key.parse::<StoreKey>().ok()?, kind)));
            match key {
                Some((key, "jsonl")) if names.contains(&key.zip()) => keys.push(key),
                Some((key, "zip")) if names.contains(&key.sidecar()) => {}
                Some((key, _)) if self.is_being_written(&key) => {}
                _ if name.starts_with(PART_PREFIX) => {}
                _ => self.warn_unknown_object(name, "it is not an archive, or it is incomplete"),
            }
        }
        keys.sort_unstable();
        let heads = stream::iter(keys)
            .map(|key| async move { (prove::read_header(&self.shared.location, &key).await, key) });
        let mut heads = std::pin::pin!(heads.buffered(CONCURRENT_HEAD_READS));
        let mut sidecars = Vec::new();
        while let Some((header, key)) = heads.next().await {
            match header {
                Ok(Ok(header)) => sidecars.push(header.sidecar),
                Ok(Err(problem)) => self.warn_unknown_object(&key.sidecar(), &problem),
                // Another call has removed the archive since the listing.
                Err(BackupStoreError::Missing { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(sidecars)
    }

    /// Returns the keys of this workspace's archives that are not in `known`, oldest first. A
    /// control plane that died before it recorded an archive leaves such an archive behind, as does
    /// an interrupted removal. Archives whose sidecar is not valid are skipped.
    pub async fn unrecorded(
        &self,
        of: &WorkspaceId,
        known: &[StoreKey],
    ) -> Result<Vec<StoreKey>, BackupStoreError> {
        let names = self.shared.location.names().await?;
        let keys = names.iter().filter_map(|name| name.strip_suffix(".jsonl")?.parse::<StoreKey>().ok());
        let stray =
            |key: &StoreKey| key.workspace() == of && !known.contains(key) && !self.is_being_written(key);
        let mut strays = Vec::new();
        for key in keys.filter(stray) {
            match prove::read_header(&self.shared.location, &key).await {
                Ok(Ok(header)) if header.sidecar.label.id == *of => strays.push(key),
                Ok(_) | Err(BackupStoreError::Missing { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        strays.sort_unstable();
        Ok(strays)
    }

    fn is_being_written(&self, key: &StoreKey) -> bool {
        self.shared.reserved_keys.lock().unwrap_or_else(PoisonError::into_inner).contains(key)
    }

    /// Logs an unknown object, unless it was logged before.
    fn warn_unknown_object(&self, name: &str, problem: &str) {
        let mut reported_objects =
            self.shared.reported_objects.lock().unwrap_or_else(PoisonError::into_inner);
        if reported_objects.len() < MAX_REPORTED_OBJECTS && reported_objects.insert(name.to_owned()) {
            tracing::warn!(object = name, problem, "ignoring unknown object in the backup store");
        }
    }
}

/// Limits of one archive. An archive that exceeds one of them fails as incomplete, and nothing of
/// it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArchiveLimits {
    /// Size of the zip, in bytes. Bounds the space that one archive occupies in the store.
    pub archive_bytes: u64,
    /// Size of all content, in bytes. Bounds the data that a proof has to decode, because a small
    /// zip may expand to much content.
    pub content_bytes: u64,
    /// Number of entries in the manifest.
    pub entries: u64,
    /// Size of the encoded manifest, in bytes. Bounds the space in the scratch directory.
    pub manifest_bytes: u64,
    /// Time without data or an entry from the agent after which the write fails.
    pub silence: Duration,
}

impl Default for ArchiveLimits {
    fn default() -> Self {
        Self {
            archive_bytes: 64 * GIB,
            content_bytes: 1024 * GIB,
            entries: 5_000_000,
            manifest_bytes: 2 * GIB,
            silence: Duration::from_secs(300),
        }
    }
}

/// Runs blocking file operations on a thread for blocking work.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other)?
}
