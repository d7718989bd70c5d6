//! A workspace: what is wanted of it (spec) and what is known of it (status).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    archive::ArchiveKey,
    id::{Name, Owner, WorkspaceId},
    policy::Policy,
    time::Timestamp,
};

/// One life of a workspace's byte logs: grows with every start of an agent; 0 is before the first.
pub type Epoch = u64;

/// The states of the design, alike in API and CLI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Waits for room.
    Queued,
    /// An agent is being started, or has not yet said hello.
    Starting,
    /// Its agent serves it.
    Awake,
    /// Between prepare and the end of its processes.
    FallingAsleep,
    /// No processes; storage kept.
    Asleep,
    /// Its storage is being read into an archive.
    Archiving,
    /// Only its archive is left.
    Archived,
    /// Its processes, then its storage go.
    Deleting,
    /// It cannot go on by itself; the reason says why.
    Failed,
}

/// Whether the agent's heartbeats arrive: apart from the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgentConnection {
    /// They do.
    Connected,
    /// They do not: nothing is known, and nothing is concluded.
    #[default]
    Unknown,
}

/// What somebody wants a workspace to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wanted {
    /// Running while it is in use; policy lets it sleep.
    Awake,
    /// Without processes.
    Asleep,
    /// Gone, but for its archive.
    Deleted,
    /// Gone with all that it held: somebody said `discard`.
    Discarded,
}

/// What a workspace takes of its owner's share while it is awake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Resources {
    /// Thousandths of a core.
    pub cpu_millis: u64,
    /// Bytes.
    pub memory_bytes: u64,
}

/// What is wanted. Changed by the API only, through the driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Never used again.
    pub id: WorkspaceId,
    /// Unique for the owner.
    pub name: Name,
    /// Immutable.
    pub owner: Owner,
    /// The template's name when it was made.
    pub template: String,
    /// Its command (an IDE) as the template had it; empty: none.
    pub command: Vec<String>,
    /// The template's environment with the workspace's own in it.
    pub env: BTreeMap<String, String>,
    /// The template's policy with the workspace's own values in it.
    pub policy: Policy,
    /// What it shall have of its owner's share while it is awake; what it has is [`crate::status::Status::given`].
    #[serde(default)]
    pub resources: Resources,
    /// What it shall be.
    pub wanted: Wanted,
    /// How often somebody asked for it to wake or to sleep. One that fell asleep wakes only for a request that it has not answered
    /// yet ([`crate::status::Status::answered`]).
    #[serde(default)]
    pub asked: u64,
    /// It begins with what this archive holds.
    #[serde(default)]
    pub source: Option<ArchiveKey>,
    /// When it was made.
    pub created: Timestamp,
    /// The client's request id, so that a repeat finds it.
    pub request_id: String,
}

impl Wanted {
    /// Whether its record is only kept for what is left of it.
    pub fn is_gone(self) -> bool {
        matches!(self, Self::Deleted | Self::Discarded)
    }
}

impl Resources {
    /// Whether there is nothing of which this is more.
    pub fn fits_in(self, other: Self) -> bool {
        self.cpu_millis <= other.cpu_millis && self.memory_bytes <= other.memory_bytes
    }

    /// The larger of both, of each kind.
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
