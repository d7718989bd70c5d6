//! Reasons as data: for the state of a workspace, for a wait, and for the next step.
//!
//! Every value is machine-readable. English is rendered where a reason is shown. No program
//! compares it.

use serde::{Deserialize, Serialize};

use crate::archive::ArchiveKey;

/// Reason for the state of a workspace.
///
/// `detail` is free text from an agent, a backend or the operating system. It is shown, but never
/// interpreted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StateReason {
    /// A record of an earlier version holds only this text.
    Unspecified { detail: String },

    /// The workspace was created and has never run.
    Created,
    /// A request asked the workspace to wake.
    WakeRequested,

    /// The first agent since the workspace was last healthy is being started.
    AgentStarting,
    /// An agent is being started after `failures` failures in a row; `cause` is the last failure.
    AgentRestarting { failures: u32, cause: Box<StateReason> },
    /// The start or resize that was ordered cannot proceed yet.
    Waiting(Wait),
    /// The agent is connected and serves the workspace.
    AgentConnected,
    /// The agent is connected, but the workspace's own command fails and is restarted.
    CommandFailed { detail: String },
    /// The agent is connected, but another container of its pod fails, cannot start or is not
    /// ready.
    ContainerNotReady { detail: String },
    /// An action failed and is retried after a pause.
    ActionFailed { operation: Operation, detail: String },

    /// The agent ended or failed before it connected.
    AgentStartFailed { detail: String },
    /// An agent of an earlier epoch was found running.
    EarlierAgentFound,
    /// The agent did not connect within the limit after its start.
    AgentHelloTimeout { limit_seconds: u64 },
    /// The agent ended. `detail` is absent if its end was not observed.
    AgentEnded { detail: Option<String> },
    /// The agent sent no heartbeat for the limit.
    AgentSilent { limit_seconds: u64 },
    /// The agent ended or went silent again. The workspace was not used since the last restart, so
    /// the agent is not restarted.
    AgentLostUnused { cause: Box<StateReason> },

    /// The workspace was idle for its whole idle timeout.
    Idle,
    /// The workspace was idle when the control plane stopped.
    IdleAtShutdown,
    /// The workspace has been awake for as long as its policy allows.
    MaxAwakeReached,
    /// A request asked the workspace to sleep.
    SleepRequested,
    /// The control plane is shutting down.
    ShuttingDown,
    /// A request asked to delete the workspace.
    DeleteRequested,
    /// A request asked to delete the workspace with its files and archives.
    DiscardRequested,
    /// A request took the deletion of the workspace back.
    DeletionCancelled,

    /// A request arrived before the workspace had fallen asleep.
    RequestedDuringSleep,
    /// The agent declined to sleep.
    SleepDeclined { reason: DeclineReason, detail: String },
    /// The agent is not connected, so the workspace's activity is unknown.
    ActivityUnknown,
    /// The workspace was used again before it fell asleep.
    UsedAgain,
    /// The agent ended while the workspace fell asleep.
    AgentEndedFallingAsleep,
    /// The agent stopped sending heartbeats while the workspace fell asleep.
    AgentSilentFallingAsleep,
    /// The agent did not complete the commit, so its processes are ended.
    AgentNotStopping,

    /// The workspace has been asleep for the policy's `archive_after`.
    ArchiveDue,
    /// The workspace is archived because it is being deleted.
    ArchiveBeforeDelete,
    /// The workspace is no longer due to be archived, so its archive was cancelled.
    ArchiveNotDue,
    /// The archive was proven; the storage still exists.
    Archived { archive: ArchiveKey },
    /// The archive is proven and the storage is being removed.
    ReleasingStorage,
    /// The storage is gone; this archive is all that is left.
    OnlyArchiveLeft { archive: ArchiveKey },
    /// Archiving failed; the storage stays.
    ArchiveFailed { cause: Box<StateReason> },
    /// The storage is being filled from this archive.
    Restoring { archive: ArchiveKey },
    /// The storage was filled from an archive.
    Restored,
    /// Restoring failed; the archive stays.
    RestoreFailed { cause: Box<StateReason> },
    /// A request to sleep or to delete the workspace cancelled its restore.
    RestoreCancelled,
    /// The agent in maintenance mode ended or disconnected.
    MaintenanceAgentLost,
    /// The last archive expired, and no storage is left.
    ArchivesExpired,
    /// The workspace was deleted before it had storage or an archive of its own.
    NothingStored,
}

/// The kind of action that failed or is retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    StartAgent,
    PrepareSleep,
    CommitSleep,
    CancelSleep,
    Resize,
    StopProcesses,
    Archive,
    Restore,
    RemoveStorage,
    ExpireArchive,
    RemoveRecord,
}

/// A start or a resize that cannot proceed yet. It proceeds by itself once the reason is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wait {
    pub reason: WaitReason,
    /// Free text from the backend; may be empty.
    pub detail: String,
}

/// Reason why a start or a resize cannot proceed yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WaitReason {
    /// A record of an earlier version has no reason.
    Unspecified,
    /// A ResourceQuota of the Kubernetes namespace is used up.
    QuotaExceeded,
    /// No node has the free resources that the pod requests.
    Unschedulable,
    /// A scheduling gate holds the pod back.
    SchedulingGated,
    /// The image could not be pulled; the pull is retried.
    ImagePull,
    /// The node has no free resources for the resize.
    ResizeDeferred,
    /// The node could not apply the resize, and retries.
    ResizeRetried,
    /// The API server does not answer.
    ApiServerUnavailable,
    /// Processes of an earlier start have to end first.
    EarlierPodEnding,
    /// The volume is not ready.
    VolumePending,
    /// A volume of the pod, such as its storage or a ConfigMap, cannot be attached or mounted yet.
    MountFailed,
    /// The node cannot create the pod's sandbox, which includes its network.
    PodSandboxFailed,
    /// The node warns of another problem with the pod.
    PodWarning,
    /// The workspace's template does not exist.
    TemplateMissing,
    /// No scheduler has looked at the pod.
    SchedulerMissing,
    /// An init container of the pod has not ended.
    InitContainerRunning,
    /// The node is still preparing the pod, and reports no problem.
    PodPreparing,
    /// The action failed and is retried. The workspace stays awake meanwhile.
    ActionFailed(Operation),
}

/// Reason why an agent declined to prepare for sleep or to commit to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeclineReason {
    /// The agent gave no reason, or one that this version does not know.
    Unspecified,
    /// The workspace is active or busy.
    InUse,
    /// The workspace has not been idle for its whole idle timeout.
    IdleTooShort,
    /// A request is held at the admission gate.
    RequestHeld,
    /// The agent is not prepared, or no longer holds requests.
    NotPrepared,
    /// The agent has committed already.
    AlreadyCommitted,
}

/// The next step of a workspace if no event comes before.
///
/// The order of the variants breaks ties between steps that are due at the same millisecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NextStep {
    /// An agent that sends no heartbeat is restarted.
    RestartSilentAgent,
    /// The start of an agent that does not connect is given up.
    GiveUpStart,
    /// Earlier failures are cleared, because the workspace has been healthy for a while.
    ResetFailures,
    /// The workspace falls asleep.
    Sleep(SleepCause),
    /// The workspace is restored from its archive.
    Restore,
    /// Users of the workspace are warned that it falls asleep.
    WarnOfSleep,
    /// The agent is started again.
    RestartAgent,
    /// The oldest archive is removed.
    ExpireArchive,
    /// The storage is archived and then removed.
    Archive,
    /// The action that failed is retried.
    RetryAction(Operation),
}

/// The cause of an awake workspace's sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SleepCause {
    /// The idle timeout passes without use.
    Idle,
    /// The longest time awake is over.
    MaxAwake,
    Requested,
    /// The workspace is being deleted.
    Deleted,
    /// The control plane is shutting down.
    Shutdown,
}

/// A request that an awake workspace sleeps unless it is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SleepRequest {
    /// A user requested the sleep.
    User,
    /// The control plane is stopping and the workspace was idle.
    Shutdown,
}

impl StateReason {
    /// Converts this reason to the cause of another reason. A reason with a cause is replaced by
    /// that cause, so that causes never nest.
    #[must_use]
    pub fn as_cause(&self) -> Box<Self> {
        match self {
            Self::AgentRestarting { cause, .. }
            | Self::AgentLostUnused { cause }
            | Self::ArchiveFailed { cause }
            | Self::RestoreFailed { cause } => cause.clone(),
            other => Box::new(other.clone()),
        }
    }

    /// Returns the cause of a sleep that this reason explains. `None` for all other reasons.
    pub fn sleep_cause(&self) -> Option<SleepCause> {
        match self {
            Self::Idle => Some(SleepCause::Idle),
            Self::MaxAwakeReached => Some(SleepCause::MaxAwake),
            Self::SleepRequested => Some(SleepCause::Requested),
            Self::DeleteRequested | Self::DiscardRequested => Some(SleepCause::Deleted),
            Self::IdleAtShutdown | Self::ShuttingDown => Some(SleepCause::Shutdown),
            _ => None,
        }
    }
}

impl Wait {
    /// Returns whether the wait is for quota of the Kubernetes namespace.
    pub fn is_for_quota(&self) -> bool {
        self.reason == WaitReason::QuotaExceeded
    }

    /// Converts this wait to the reason of a state.
    pub fn as_reason(&self) -> StateReason {
        match self.reason {
            WaitReason::ActionFailed(operation) => {
                StateReason::ActionFailed { operation, detail: self.detail.clone() }
            }
            _ => StateReason::Waiting(self.clone()),
        }
    }
}

impl From<SleepRequest> for StateReason {
    fn from(request: SleepRequest) -> Self {
        match request {
            SleepRequest::User => Self::SleepRequested,
            SleepRequest::Shutdown => Self::IdleAtShutdown,
        }
    }
}
