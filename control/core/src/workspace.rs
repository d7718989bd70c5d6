//! The spec of a workspace: its identity, its desired state and its policy.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    archive::ArchiveKey,
    id::{Name, Owner, WorkspaceId},
    policy::Policy,
    time::Timestamp,
};

/// One life of a workspace's byte logs. Each start of an agent takes the next one; 0 is before the
/// first.
pub type Epoch = u64;

/// The public state of a workspace, with the same words in API, CRD and CLI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Waits in the admission queue, or for quota of the cluster.
    Queued,
    /// An agent is being started and has not said hello.
    Starting,
    /// The agent serves the workspace.
    Awake,
    /// Between prepare and the end of the last process.
    FallingAsleep,
    /// No process runs; the storage stays.
    Asleep,
    /// The storage is being archived, or removed after that.
    Archiving,
    /// Only archives are left.
    Archived,
    /// Processes, storage and archives are being removed.
    Deleting,
    /// Starting failed repeatedly. It is still retried, at long intervals.
    Failed,
}

/// Whether heartbeats of the agent arrive. Independent of the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgentConnection {
    Connected,
    /// No heartbeat arrives. Nothing is concluded from that.
    #[default]
    Unknown,
}

/// The state that a user or the policy asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DesiredState {
    /// Running while in use; the policy puts it to sleep.
    Awake,
    /// Not running; the storage stays.
    Asleep,
    /// Removed, except for an archive that is made first.
    Deleted,
    /// Removed with its files and archives, by an explicit discard.
    Discarded,
}

/// CPU and memory that a workspace takes from its owner's quota while it is awake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Resources {
    /// Thousandths of a core.
    pub cpu_millis: u64,
    pub memory_bytes: u64,
}

/// The desired configuration of a workspace. Changed by requests only, through the driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    pub id: WorkspaceId,
    pub name: Name,
    /// The owner of a workspace never changes.
    pub owner: Owner,
    /// Name of the template when the workspace was created.
    pub template: String,
    /// The template's command (an IDE) at creation. Empty: none.
    pub command: Vec<String>,
    /// The template's environment, overridden by the workspace's own.
    pub env: BTreeMap<String, String>,
    /// The template's policy, overridden by the workspace's own values.
    pub policy: Policy,
    /// Requested resources while awake. What is reserved is [`crate::status::Status::allocated`].
    #[serde(default)]
    pub resources: Resources,
    pub desired_state: DesiredState,
    /// Number of requests to wake or to sleep so far. A workspace that fell asleep wakes only for a
    /// request later than [`crate::status::Status::observed_request`].
    #[serde(default)]
    pub request_seq: u64,
    /// Archive whose files the workspace starts with.
    #[serde(default)]
    pub source: Option<ArchiveKey>,
    pub created: Timestamp,
    /// Request id of the create call, so that a repeated call finds the workspace.
    pub request_id: String,
}

impl DesiredState {
    /// Whether the workspace is being deleted, with or without an archive.
    pub fn is_gone(self) -> bool {
        matches!(self, Self::Deleted | Self::Discarded)
    }
}

impl Resources {
    /// Whether this asks for no more than `other` of each resource.
    pub fn fits_in(self, other: Self) -> bool {
        self.cpu_millis <= other.cpu_millis && self.memory_bytes <= other.memory_bytes
    }

    /// The larger value of each resource.
    #[must_use]
    pub fn most(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.max(other.cpu_millis),
            memory_bytes: self.memory_bytes.max(other.memory_bytes),
        }
    }
}

impl Default for Resources {
    fn default() -> Self {
        Self { cpu_millis: 1000, memory_bytes: 1 << 30 }
    }
}
