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
mod folder;
mod key;
mod limits;
mod list;
mod manifest;
mod objects;
mod place;
mod prove;
mod sidecar;
mod spool;
mod write;

pub use digest::{Digest, NoDigest};
pub use error::{BackupError, EntryName, OpenError, Reasons};
pub use key::{BadKey, Key};
pub use limits::Limits;
pub use prove::Proof;
pub use sidecar::{Label, Sidecar};

use limits::{BLOCK_BYTES, SECONDS_TRIED};
use place::{Place, Staged};
use spool::{Spool, Spooled};
use write::Received;

/// The backup store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Backups {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    place: Place,
    scratch: PathBuf,
    limits: Limits,
    /// Keys that are being written.
    taken: Mutex<HashSet<Key>>,
    /// Objects of others that have been spoken of.
    strangers: Mutex<HashSet<String>>,
}

/// How far a write is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
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
pub struct Written {
    /// Which backup it is.
    pub key: Key,
    /// Lines of the manifest.
    pub entries: u64,
    /// Of content, in bytes.
    pub bytes: u64,
    /// Of the zip, in bytes.
    pub archive_bytes: u64,
    /// Of the zip.
    pub sha256: Digest,
}

/// Nobody else writes this key meanwhile.
#[derive(Debug)]
struct Turn {
    key: Key,
    shared: Arc<Shared>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.shared.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

impl Backups {
    /// Opens the store at `url`: `file:///absolute/folder` (made if its parent is there), or with the feature "cloud" `s3://bucket/prefix`,
    /// `gs://…` or `az://…`. Manifests wait in the folder `scratch`, which has to be there.
    pub fn open(url: &str, scratch: PathBuf) -> Result<Self, OpenError> {
        Ok(Self::at(Place::open(url)?, scratch))
    }

    /// Below `prefix` in any object store; `name` is for people.
    pub fn over(
        store: Arc<dyn ObjectStore>,
        prefix: object_store::path::Path,
        name: &str,
        scratch: PathBuf,
    ) -> Self {
        Self::at(Place::objects(store, prefix, name), scratch)
    }

    fn at(place: Place, scratch: PathBuf) -> Self {
        let (taken, strangers) = Default::default();
        Self { shared: Arc::new(Shared { place, scratch, limits: Limits::default(), taken, strangers }) }
    }

    /// With other bounds.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        let (place, scratch) = (self.shared.place.clone(), self.shared.scratch.clone());
        let (taken, strangers) = Default::default();
        Self { shared: Arc::new(Shared { place, scratch, limits, taken, strangers }) }
    }

    /// Writes the archive that an agent streams, under a key that is free. It shows only when it is whole: if the stream is cut, or what
    /// came is not what the agent says, nothing is left. (If this is dropped, a bucket may keep parts that do not show: see `objects`.)
    pub async fn write(
        &self,
        label: &Label,
        stream: impl Stream<Item = Result<CreateArchiveResponse, tonic::Status>> + Send,
        progress: impl Fn(Progress) + Send,
    ) -> Result<Written, BackupError> {
        label.check()?;
        let turn = self.turn(&label.id).await?;
        let place = &self.shared.place;
        let spool = Spool::new(&self.shared.scratch).await?;
        let mut zip = place.upload(&turn.key.zip()).await?;
        let received = match write::receive(stream, &mut zip, spool, &self.shared.limits, progress).await {
            Ok(received) => received,
            Err(error) => {
                zip.discard().await;
                return Err(error);
            }
        };
        let zip = zip.stage().await?;
        let Received { spool, entries, bytes, archive_bytes, sha256 } = received;
        let key = turn.key.clone();
        let sidecar = Sidecar { key, label: label.clone(), archive_bytes, sha256, entries, bytes };
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
            if let Err(error) = place.remove(&turn.key.sidecar()).await {
                tracing::warn!(%error, backup = %turn.key, "a sidecar without its archive could not be removed");
            }
            return Err(error);
        }
        Ok(Written { key: turn.key.clone(), entries, bytes, archive_bytes, sha256 })
    }

    /// A key that nobody has: of this second, or of the next that is free.
    async fn turn(&self, id: &WorkspaceId) -> Result<Turn, BackupError> {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or(Duration::ZERO).as_secs();
        let mut key = Key::new(id.clone(), now);
        for _ in 0..SECONDS_TRIED {
            let free = self.shared.taken.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone());
            if free {
                let turn = Turn { key: key.clone(), shared: self.shared.clone() };
                let place = &self.shared.place;
                if !place.exists(&key.zip()).await? && !place.exists(&key.sidecar()).await? {
                    return Ok(turn);
                }
            }
            key = key.next();
        }
        let source = format!("the {SECONDS_TRIED} seconds from now have one already").into();
        let place = self.shared.place.name().to_owned();
        Err(BackupError::Unreachable { place, doing: format!("naming a backup of {id}"), source })
    }

    /// Stores the sidecar so that only its name is missing.
    async fn stage(&self, sidecar: &Sidecar, spool: Spool) -> Result<Staged, BackupError> {
        let Spooled { mut file, sum, doubled } = spool.finish().await?;
        if doubled {
            return Err(BackupError::incomplete("two entries have the same name"));
        }
        let front = sidecar::front(sidecar, sum)?;
        let mut upload = self.shared.place.upload(&sidecar.key.sidecar()).await?;
        let mut block = vec![0; BLOCK_BYTES / 4];
        let mut written = upload.write(&front).await;
        while written.is_ok() {
            match file.read(&mut block).await {
                Ok(0) => return upload.stage().await,
                Ok(count) => written = upload.write(&block[..count]).await,
                Err(error) => {
                    let scratch = format!("the scratch folder {}", self.shared.scratch.display());
                    written = Err(BackupError::io(&scratch, "reading the manifest back", error));
                }
            }
        }
        upload.discard().await;
        written.and(Err(BackupError::incomplete("its manifest could not be read back")))
    }

    /// Law 6: reads the stored objects back, decodes every entry of the zip and compares it with the manifest, none missing and none more,
    /// and the digests of both objects.
    pub async fn prove(&self, written: &Key) -> Result<Proof, BackupError> {
        self.prove_telling(written, |_, _| {}).await
    }

    /// The same, and says how far it is: so many bytes of the zip are read, of so many.
    pub async fn prove_telling(
        &self,
        written: &Key,
        progress: impl Fn(u64, u64) + Send,
    ) -> Result<Proof, BackupError> {
        prove::prove(&self.shared.place, written, progress).await
    }

    /// Of the zip, in bytes.
    pub async fn size(&self, key: &Key) -> Result<u64, BackupError> {
        self.shared.place.size(&key.zip()).await
    }

    /// The zip from its beginning, in blocks of at most 1 MiB.
    pub fn read(&self, key: &Key) -> impl Stream<Item = Result<Bytes, BackupError>> + Send + use<> {
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
    pub async fn remove(&self, key: &Key) -> Result<(), BackupError> {
        self.shared.place.remove(&key.zip()).await?;
        self.shared.place.remove(&key.sidecar()).await
    }
}
