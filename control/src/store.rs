//! The store: what must survive the control plane. Only the driver uses it, and only to write what it decided.
//!
//! Must not know what a workspace's status means.

mod file;
mod kubernetes;
mod redb;
mod reserve;
mod stored;

use std::{
    collections::{HashSet, VecDeque},
    fmt, io,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use podling_core::{
    id::WorkspaceId,
    reason::StateReason,
    status::{Phase, Status},
    time::Timestamp,
    workspace::{Epoch, Spec, State},
};
use serde::{Deserialize, Serialize};

pub use self::{kubernetes::KubernetesStore, redb::RedbStore};
use crate::snapshot::Fingerprint;

/// Keeps records. One driver uses it at a time; its calls come one after the other.
#[tonic::async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// Everything that can be read. Called once, before anything else.
    async fn load(&self) -> Result<LoadedRecords, StoreError>;

    /// Makes changes durable, at most one for each workspace, and says of each whether it is. One that failed may have become durable all the
    /// same; the next one for its workspace stands in its place.
    async fn commit(&self, changes: Vec<StoreChange>) -> Vec<CommitResult>;
}

/// What became of a change.
pub type CommitResult = (StoreChange, Result<(), Arc<StoreError>>);

/// The shape of [`WorkspaceRecord`]. A record of a later one is left alone.
pub const RECORD_SCHEMA: u32 = 2;

/// One workspace as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkspaceRecord {
    /// What is wanted.
    pub spec: Arc<Spec>,
    /// How far it has come.
    pub status: Status,
    /// What the agent of the present epoch proves itself with.
    pub credential: Option<CredentialDigest>,
    /// What was decided of it lately, oldest first: at most [`LOG_ENTRIES`].
    #[serde(default)]
    pub log: Arc<VecDeque<LogEntry>>,
    /// Which edit of its resource this follows from, where it has one.
    #[serde(default)]
    pub generation: i64,
}

/// Decisions kept of each workspace: some days of an ordinary one, and some 4 KiB.
pub const LOG_ENTRIES: usize = 40;

/// One decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// When.
    pub at: Timestamp,
    /// What the workspace was from then on.
    pub state: State,
    pub reason: StateReason,
}

/// SHA-256 of an agent's secret; the secret itself is only in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CredentialDigest {
    /// Of which start.
    pub epoch: Epoch,
    /// Of the secret.
    pub digest: Fingerprint,
}

/// One write.
#[derive(Debug, Clone)]
pub enum StoreChange {
    /// New, or new content.
    Put(Arc<WorkspaceRecord>),
    /// Gone; the id stays taken for ever.
    Forget(WorkspaceId, Timestamp),
    /// So long has been watched, over all lives of the control plane.
    ObservedTime(Duration),
}

impl StoreChange {
    /// The workspace it is about.
    pub fn id(&self) -> Option<&WorkspaceId> {
        match self {
            Self::Put(record) => Some(&record.spec.id),
            Self::Forget(id, _) => Some(id),
            Self::ObservedTime(_) => None,
        }
    }
}

impl WorkspaceRecord {
    /// It was deleted, and is only kept for its archives.
    pub fn is_gone(&self) -> bool {
        self.spec.desired_state.is_gone() && self.status.phase == Phase::Archived && !self.status.storage
    }
}

/// What was there at the start.
#[derive(Debug, Default)]
pub struct LoadedRecords {
    /// All that could be read.
    pub records: Vec<WorkspaceRecord>,
    /// Every id that was ever given, as bits.
    pub used: HashSet<u64>,
    /// Time that control planes have watched, over all their lives.
    pub observed_time: Duration,
}

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it.
    #[error("{path} is in use by another podling{}; end that first (podling down), or take another data folder", by(.pid))]
    InUse {
        /// The file.
        path: PathBuf,
        /// The other process, if the kernel says.
        pid: Option<u32>,
    },
    /// A file of another version.
    #[error("{path} has the format of another version ({version}); run the podling that wrote it")]
    OtherFormat {
        /// The file.
        path: PathBuf,
        /// Of the format.
        version: u8,
    },
    /// The file cannot be opened or made.
    #[error("opening {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is no database, or damaged.
    #[error(
        "{path} cannot be read as a database; move it away to start anew (what it held is then not known any more)"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<::redb::Error>,
    },
    /// Somebody else has changed it, and that has to be seen first.
    #[error("the workspace {name} was changed by somebody else just now")]
    Changed {
        /// The resource.
        name: String,
    },
    /// Another control plane may have taken over.
    #[error("this control plane does not decide any more")]
    Superseded,
    /// Another workspace is called so.
    #[error("there is a workspace {name} in this namespace already; take another name")]
    Taken {
        /// The name.
        name: String,
    },
    /// The API server did not do it.
    #[error("{operation}")]
    Cluster {
        /// What was tried.
        operation: String,
        /// Why not.
        #[source]
        source: Box<kube::Error>,
    },
    /// Reading or writing the file failed.
    #[error("{operation} in the store")]
    Access {
        /// What was tried.
        operation: &'static str,
        /// Why.
        #[source]
        source: Box<::redb::Error>,
    },
}

impl StoreError {
    /// Whether there is no room on the disk.
    pub fn is_disk_full(&self) -> bool {
        let io = match self {
            Self::Open { source, .. } => Some(source),
            Self::Access { source, .. } | Self::Damaged { source, .. } => match &**source {
                ::redb::Error::Io(error) => Some(error),
                _ => None,
            },
            _ => None,
        };
        io.is_some_and(|error| {
            matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        })
    }
}

fn by(pid: &Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}
