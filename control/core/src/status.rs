//! The durable progress of a workspace. `decide` computes it, and only the driver stores it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    archive::Archive,
    mutant::{self, Mutant},
    reason::{StateReason, Wait},
    time::Timestamp,
    workspace::{Epoch, Resources, State},
};

/// Failures in a row after which a workspace counts as failed. It is still retried, at long
/// intervals and on request.
pub const FAILED_AFTER: u32 = 5;

/// The durable status of a workspace.
///
/// Durations here are readings of observed time ([`crate::observed::Observed::observed_time`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Position in the state machine drawn in `decide`.
    pub phase: Phase,
    pub reason: StateReason,
    /// When the phase was entered.
    pub since: Timestamp,
    /// Observed time when the workspace last woke.
    #[serde(default)]
    pub woke_at: Duration,
    /// Observed time of the last request that kept or made it awake.
    #[serde(default)]
    pub requested_at: Duration,
    /// Observed time when the workspace last fell asleep.
    #[serde(default)]
    pub slept_at: Duration,
    /// Observed time when the workspace joined the admission queue, which orders it there. `None`:
    /// not queued.
    #[serde(default)]
    pub queued_at: Option<Duration>,
    /// Quota reserved for the workspace, from admission until its processes have ended.
    #[serde(default)]
    pub allocated: Option<Resources>,
    /// Epoch of the last start that was ordered; 0 before the first.
    pub epoch: Epoch,
    /// Number of agents that have had write access to the storage. An archive is proven for one
    /// value of it.
    pub storage_generation: u64,
    /// Whether storage may exist.
    #[serde(default = "yes")]
    pub storage: bool,
    /// Failed starts and lost agents in a row since the workspace was last healthy.
    pub failures: u32,
    /// The last [`crate::workspace::Spec::request_seq`] that was acted on.
    #[serde(default)]
    pub observed_request: u64,
    /// Retained archives, oldest first.
    #[serde(default)]
    pub archives: Vec<Archive>,
    #[serde(default)]
    pub maintenance_retry: MaintenanceRetry,
    /// What the ordered start or resize waits for.
    #[serde(default)]
    pub waits: Option<Wait>,
}

/// Failed attempts in a row to archive or to restore.
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
    /// Admitted. Starts once no earlier agent runs and the pause after a failure is over.
    Pending {
        /// End of that pause.
        not_before: Timestamp,
    },
    /// An agent was ordered and has not said hello.
    Starting,
    /// The agent has said hello.
    Awake,
    /// The agent was asked whether it may sleep, and holds new requests.
    Preparing {
        urgency: Urgency,
        /// Refusals so far, so that a new refusal can be told from an old one.
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
    /// Only the archive is left, once the storage has been removed.
    Archived,
    /// Processes, storage, archives and the record are removed, in this order.
    Deleting,
}

/// How strongly a workspace is asked to sleep, which decides when its agent may decline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Urgency {
    /// The idle timeout passed: the agent declines if the workspace is in use or was idle for less
    /// than that.
    Idle,
    /// A user requested sleep: the agent declines if the workspace is in use.
    Requested,
    /// Sleep was forced, or the longest time awake is over: the agent never declines.
    Forced,
}

/// Work on the storage of a workspace that has no processes of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MaintenanceTask {
    /// Read the storage into an archive and prove it.
    Archive,
    /// Fill the storage from an archive.
    Restore,
}

/// Progress of a [`MaintenanceTask`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MaintenanceStage {
    /// The agent was ordered and has not said hello.
    Starting,
    /// The agent works on the task.
    Running,
}

impl Phase {
    /// Whether a workspace in this phase holds quota.
    pub fn holds_quota(self) -> bool {
        match self {
            Self::Pending { .. }
            | Self::Starting
            | Self::Awake
            | Self::Preparing { .. }
            | Self::Committing
            | Self::FallingAsleep => true,
            Self::Queued | Self::Asleep | Self::Archived | Self::Deleting => false,
            // Maintenance is not the owner's doing, and has a bound of its own.
            Self::Maintenance { .. } => false,
        }
    }
}

impl Status {
    /// The status of a workspace that was just created.
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
            observed_request: 0,
            archives: Vec::new(),
            maintenance_retry: MaintenanceRetry::default(),
            waits: None,
        }
    }

    /// The status of a workspace that was just created from an archive.
    pub fn from_archive(now: Timestamp) -> Self {
        Self { phase: Phase::Archived, ..Self::new(now) }
    }

    /// The archive of the storage's present content, if there is one.
    pub fn archive(&self) -> Option<&Archive> {
        let trusted = |archive: &&Archive| {
            archive.generation == self.storage_generation || mutant::is(Mutant::TrustsOldArchive)
        };
        self.archives.iter().rev().find(trusted)
    }

    /// The state that API, CRD and CLI show.
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
