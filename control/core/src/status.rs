//! The persisted status of a workspace. `decide` computes it, and only the driver writes it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    archive::Archive,
    reason::{StateReason, Wait},
    time::Timestamp,
    workspace::{Epoch, Resources, State},
};

/// Failures in a row after which the state is `failed`. The workspace is still retried, at long
/// intervals and on request.
pub const FAILED_AFTER: u32 = 5;

/// The persisted status of a workspace.
///
/// Fields of type `Duration` are readings of observed time
/// ([`crate::observed::Observed::observed_time`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Position in the state machine drawn in `decide`.
    pub phase: Phase,
    pub reason: StateReason,
    /// Wall-clock time when the phase was entered, or when the storage was removed in `Archived`.
    pub since: Timestamp,
    /// Observed time when the workspace last woke.
    #[serde(default)]
    pub woke_at: Duration,
    /// Observed time when the workspace woke, or when a request last cancelled its sleep.
    #[serde(default)]
    pub requested_at: Duration,
    /// Observed time when the workspace last fell asleep.
    #[serde(default)]
    pub slept_at: Duration,
    /// Observed time when the workspace joined the admission queue, which is ordered by it. `None`
    /// if the workspace is not queued.
    #[serde(default)]
    pub queued_at: Option<Duration>,
    /// Resources reserved in the owner's quota, from admission until the processes have ended.
    #[serde(default)]
    pub allocated: Option<Resources>,
    /// Epoch of the last start; 0 before the first.
    pub epoch: Epoch,
    /// Number of agents that have had write access to the storage, including those that restored
    /// it. An archive is valid for one value.
    pub storage_generation: u64,
    /// Whether the storage may hold files of the workspace: since the first agent that could write to
    /// it, and until it is removed. No agent is claimed before this is durable. Without it, an empty
    /// volume or directory may exist, which is removed without an archive.
    #[serde(default = "yes")]
    pub storage: bool,
    /// Failed starts and lost agents in a row since the workspace was last healthy.
    pub failures: u32,
    /// [`crate::workspace::Spec::request_seq`] of the last request that was acted on. `None` after a
    /// desired state other than `Awake` was observed: the next `Awake` is then a request with any number.
    #[serde(default)]
    pub observed_request: Option<u64>,
    /// Retained archives, oldest first.
    #[serde(default)]
    pub archives: Vec<Archive>,
    #[serde(default)]
    pub maintenance_retry: MaintenanceRetry,
    /// The wait of the start or resize in progress.
    #[serde(default)]
    pub waits: Option<Wait>,
}

/// One decision about a workspace, for its log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    pub at: Timestamp,
    /// State that the workspace entered.
    pub state: State,
    pub reason: StateReason,
}

/// The failed attempts in a row to archive or to restore.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaintenanceRetry {
    pub failures: u32,
    /// The next attempt starts no earlier than this.
    pub not_before: Timestamp,
}

/// Position of a workspace in the state machine drawn in `decide`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Waits in the admission queue.
    Queued,
    /// The workspace was admitted. Its agent is started once no process runs and the pause after a
    /// failure is over.
    Pending {
        /// When the pause after a failure ends.
        not_before: Timestamp,
    },
    /// The agent is being started and has not connected.
    Starting,
    /// The agent has connected, and serves the workspace.
    Awake,
    /// The agent is asked to prepare for sleep. Once prepared, it holds new requests.
    Preparing {
        urgency: Urgency,
        /// Number of declines in a row when this prepare began. A different number means a new
        /// refusal.
        declined: u32,
    },
    /// The agent ends its programs and saves. This cannot be undone.
    Committing,
    /// The processes are being ended; the storage stays.
    FallingAsleep,
    /// No process runs; the storage stays.
    Asleep,
    /// An agent in maintenance mode archives or restores the storage.
    Maintenance { task: MaintenanceTask, stage: MaintenanceStage },
    /// The storage is being removed, or only archives are left.
    Archived,
    /// Processes, storage, archives and the record are removed, in this order.
    Deleting,
}

/// Strength of a request to sleep. It decides when the agent may decline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Urgency {
    /// The idle timeout passed. The agent declines if the workspace is in use, or was idle for less
    /// than the timeout.
    Idle,
    /// A user requested sleep. The agent declines if the workspace is in use.
    Requested,
    /// Sleep was forced, or the longest time awake is over. The agent never declines because of
    /// use.
    Forced,
}

/// The work of an agent in maintenance mode on a workspace's storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MaintenanceTask {
    /// Reads the storage into an archive and proves the archive.
    Archive,
    /// Fills the storage from an archive.
    Restore,
}

/// Progress of a [`MaintenanceTask`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MaintenanceStage {
    /// The agent in maintenance mode is being started and has not connected.
    Starting,
    /// The agent works on the task.
    Running,
}

impl Phase {
    /// Returns whether a workspace in this phase holds quota.
    pub fn holds_quota(self) -> bool {
        match self {
            Self::Pending { .. }
            | Self::Starting
            | Self::Awake
            | Self::Preparing { .. }
            | Self::Committing
            | Self::FallingAsleep => true,
            Self::Queued | Self::Asleep | Self::Archived | Self::Deleting => false,
            // Archives are started by the control plane, and restores fill storage before the
            // workspace is queued. Neither is charged to the owner's quota.
            Self::Maintenance { .. } => false,
        }
    }
}

impl Status {
    /// Creates the status of a new workspace with empty storage.
    pub fn new(now: Timestamp) -> Self {
        Self {
            phase: Phase::Queued,
            reason: StateReason::Created,
            since: now,
            woke_at: Duration::ZERO,
            requested_at: Duration::ZERO,
            slept_at: Duration::ZERO,
            queued_at: None,
            allocated: None,
            epoch: 0,
            storage_generation: 0,
            storage: false,
            failures: 0,
            observed_request: None,
            archives: Vec::new(),
            maintenance_retry: MaintenanceRetry::default(),
            waits: None,
        }
    }

    /// Creates the status of a new workspace whose files come from an archive.
    pub fn from_archive(now: Timestamp) -> Self {
        Self { phase: Phase::Archived, ..Self::new(now) }
    }

    /// Returns the archive of the storage's present content, if there is one.
    pub fn archive(&self) -> Option<&Archive> {
        self.archives.iter().rev().find(|archive| archive.generation == self.storage_generation)
    }

    /// Returns whether an agent may be claimed while this status is the durable one. A claimed agent
    /// can write to the storage, so a crash must not lose the fact that it may have.
    pub fn permits_claim(&self) -> bool {
        self.storage
    }

    /// Returns the state that API, CRD and CLI show.
    pub fn state(&self) -> State {
        match self.phase {
            Phase::Queued => State::Queued,
            Phase::Pending { .. } if self.failures >= FAILED_AFTER => State::Failed,
            Phase::Starting if self.waits.as_ref().is_some_and(Wait::is_for_quota) => State::Queued,
            Phase::Pending { .. } | Phase::Starting => State::Starting,
            Phase::Maintenance { task: MaintenanceTask::Restore, .. } => State::Starting,
            Phase::Awake => State::Awake,
            Phase::Preparing { .. } | Phase::Committing | Phase::FallingAsleep => State::FallingAsleep,
            Phase::Asleep => State::Asleep,
            Phase::Maintenance { task: MaintenanceTask::Archive, .. } => State::Archiving,
            Phase::Archived if self.storage => State::Archiving,
            Phase::Archived => State::Archived,
            Phase::Deleting => State::Deleting,
        }
    }
}

fn yes() -> bool {
    true
}
