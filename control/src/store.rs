//! The store persists the records of workspaces. Only the driver loads and commits records.
//!
//! A store makes no decisions: it writes what the driver has decided.

mod kubernetes;
mod redb;
mod stored;

use std::{
    collections::{HashSet, VecDeque},
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use podling_core::{
    id::WorkspaceId,
    spec_change::SpecChange,
    status::{Phase, Status},
    time::Timestamp,
    workspace::{DesiredSpec, Epoch, Spec},
};
use serde::{Deserialize, Serialize};

pub use podling_core::status::LogEntry;

pub use self::{kubernetes::KubernetesStore, redb::RedbStore};
use crate::agent_address::Fingerprint;

/// Persists records, and owns the specs of workspaces. Only one driver uses a store at a time.
///
/// A spec has other writers, such as users of `kubectl`, so the driver does not write it. The driver
/// requests changes of it, and observes the newest spec.
#[tonic::async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// Reads all records. Called once, before any other method.
    async fn load(&self) -> Result<LoadedRecords, StoreError>;

    /// Makes changes durable and returns the result of each. `changes` contains at most one change
    /// for each workspace. A change whose write failed may still be durable; the next change of its
    /// workspace replaces it. Calls are sequential.
    async fn commit(&self, changes: Vec<StoreChange>) -> Vec<CommitResult>;

    /// Applies a change to the newest spec of a workspace, and makes it durable. Returns the newest
    /// spec, also if the change does not apply to it. `known` is the last durable record with the last
    /// observed spec. Calls may overlap, with each other and with [`Self::commit`].
    async fn change_spec(
        &self,
        known: &WorkspaceRecord,
        change: &SpecChange,
    ) -> Result<StoredSpec, StoreError>;
}

/// A spec as the store holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredSpec {
    pub desired: DesiredSpec,
    /// Counts the changes of the spec. On Kubernetes, this is `metadata.generation`.
    pub generation: i64,
    /// Orders observations of one workspace's spec: a later one has the same or a higher version.
    pub version: u64,
    /// Whether the workspace was deleted in the store in a way that cannot be taken back.
    pub deleted_in_store: bool,
}

/// A change, and whether it was stored.
pub type CommitResult = (StoreChange, Result<(), Arc<StoreError>>);

/// Schema version of [`WorkspaceRecord`]. Records of a later version are not read and stay
/// unchanged.
pub const RECORD_SCHEMA: u32 = 2;

/// The persisted form of a workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkspaceRecord {
    /// The last observed spec. The status may not reflect it yet.
    pub spec: Arc<Spec>,
    pub status: Status,
    /// Digest of the secret of the agent that was started last.
    pub credential: Option<CredentialDigest>,
    /// The last decisions, oldest first; at most [`LOG_ENTRIES`].
    #[serde(default)]
    pub log: Arc<VecDeque<LogEntry>>,
    /// Generation of `spec` in the store; 0 if none was observed yet.
    #[serde(default)]
    pub generation: i64,
}

/// Decisions retained for each workspace. They take about 4 KiB and cover some days of ordinary
/// use.
pub const LOG_ENTRIES: usize = 40;

/// SHA-256 of an agent's secret. Only the agent's credential file contains the secret itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CredentialDigest {
    /// Epoch of the start that the secret was created for.
    pub epoch: Epoch,
    pub digest: Fingerprint,
}

/// A change that the store is to write.
#[derive(Debug, Clone)]
pub enum StoreChange {
    /// Creates the record, or replaces all of it except its spec.
    Put(Arc<WorkspaceRecord>),
    /// Removes the record at this time. Its id is never reused.
    Remove(WorkspaceId, Timestamp),
    /// Stores the observed time, added up over all runs of the control plane.
    ObservedTime(Duration),
}

impl StoreChange {
    /// Returns the workspace that the change concerns; `None` for the observed time.
    pub fn id(&self) -> Option<&WorkspaceId> {
        match self {
            Self::Put(record) => Some(&record.spec.id),
            Self::Remove(id, _) => Some(id),
            Self::ObservedTime(_) => None,
        }
    }
}

impl WorkspaceRecord {
    /// Returns whether the workspace was deleted, and its record is retained only for its archives.
    pub fn is_gone(&self) -> bool {
        self.spec.desired_state.is_gone() && self.status.phase == Phase::Archived && !self.status.storage
    }
}

/// Content of the store when the control plane starts.
#[derive(Debug, Default)]
pub struct LoadedRecords {
    pub records: Vec<WorkspaceRecord>,
    /// Bits of the ids that must not be assigned again.
    pub issued_ids: HashSet<u64>,
    /// Observed time, added up over all runs of the control plane.
    pub observed_time: Duration,
}

/// Why an operation of the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process holds the lock of the file.
    #[error("{path} is in use by another control plane{}; \
         stop it with `podling down --data {}`, or use another data directory", by(.pid), data_dir(.path))]
    InUse {
        path: PathBuf,
        /// Id of the other process, if the kernel reports it.
        pid: Option<u32>,
    },
    /// The file was written by another version of Podling.
    #[error("{path} has the database format {version} of another version of Podling; run that version")]
    OtherFormat { path: PathBuf, version: u8 },
    /// The file could not be opened or created.
    #[error("cannot open or create {path}")]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The file is damaged, or not a database.
    #[error(
        "{path} cannot be read as a database; move it away to start with an empty one, which forgets \
         all workspaces"
    )]
    Damaged {
        path: PathBuf,
        #[source]
        source: Box<::redb::Error>,
    },
    /// Other clients changed or removed the resource at each attempt.
    #[error("the workspace {name} was changed by another writer at the same time; retry")]
    Conflict { name: String },
    /// This control plane lost its leadership; another may have taken over.
    #[error("this control plane is not the leader any more")]
    NotLeader,
    /// The API server has dropped a changed field that its CRD does not contain.
    #[error(
        "the CustomResourceDefinition of workspaces is older than this control plane; apply the CRDs of \
         its version, then retry"
    )]
    OutdatedCrd,
    /// Another Workspace resource in the namespace has this name.
    #[error("a workspace named {name} exists in this namespace; choose another name")]
    NameTaken { name: String },
    /// The API server rejected a request or did not answer.
    #[error("cannot {operation}")]
    Cluster {
        operation: String,
        #[source]
        source: Box<kube::Error>,
    },
    /// Reading or writing the file failed.
    #[error("cannot {operation} the store")]
    Access {
        operation: &'static str,
        #[source]
        source: Box<::redb::Error>,
    },
}

impl StoreError {
    /// Returns whether the cause is a full disk or an exhausted disk quota.
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

/// Returns the data directory of the store at `DATA/control/store.redb`.
fn data_dir(path: &Path) -> std::path::Display<'_> {
    path.ancestors().nth(2).unwrap_or(path).display()
}

fn by(pid: &Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}
