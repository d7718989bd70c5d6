//! The spec of a workspace, and the states in which users see it.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::{
    archive::ArchiveKey,
    id::{Owner, WorkspaceId, WorkspaceName},
    policy::Policy,
    status::Status,
    time::Timestamp,
};

/// Epoch of a workspace's byte logs. Each start of an agent increments it; 0 means that none was
/// started.
pub type Epoch = u64;

/// The public state of a workspace, with the same words in API, CRD and CLI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Waits in the admission queue, or for quota of the Kubernetes namespace.
    Queued,
    /// An agent is being started and has not connected. Includes a restore.
    Starting,
    /// The agent serves the workspace.
    Awake,
    /// The agent prepares or commits the sleep, or the last processes are being ended.
    FallingAsleep,
    /// No process runs; the storage stays.
    Asleep,
    /// The storage is being archived, or is being removed after that.
    Archiving,
    /// Only archives are left.
    Archived,
    /// Processes, storage and archives are being removed.
    Deleting,
    /// The agent failed to start, or was lost, several times. Restarts continue at long intervals.
    Failed,
}

/// Whether heartbeats of the agent arrive. Independent of the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgentConnection {
    Connected,
    /// No heartbeat arrives. This does not mean that the workspace is idle.
    #[default]
    Unknown,
}

/// The state that a user or the policy asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DesiredState {
    /// The workspace runs until its policy puts it to sleep.
    Awake,
    /// No process runs, and the storage stays.
    Asleep,
    /// The workspace is archived, then removed.
    Deleted,
    /// The workspace is removed with its files and archives, by an explicit discard.
    Discarded,
}

/// Most CPU of one workspace, in thousandths of a core: 1000 cores. More is a mistake, such as
/// thousandths that are given as cores.
pub const MAX_CPU_MILLIS: u64 = 1_000_000;
/// Least memory of one workspace, for the agent and a shell: 64 MiB.
pub const MIN_MEMORY_BYTES: u64 = 64 << 20;
/// Most memory of one workspace: 64 TiB.
pub const MAX_MEMORY_BYTES: u64 = 64 << 40;

/// A request for resources that no workspace may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnreasonableResources {
    #[error("must be more than 0 and at most 1000 cores")]
    Cpu,
    #[error("must be at least 64 MiB, for the agent and a shell, and at most 64 TiB")]
    Memory,
}

/// CPU and memory that an awake workspace takes from its owner's quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Resources {
    /// Thousandths of a core.
    pub cpu_millis: u64,
    pub memory_bytes: u64,
}

/// New values of some resources. `None` leaves a resource as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResourceOverrides {
    /// Thousandths of a core.
    pub cpu_millis: Option<u64>,
    pub memory_bytes: Option<u64>,
}

/// The configuration of a workspace. The parts in [`DesiredSpec`] may change, and the others never do.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    pub id: WorkspaceId,
    pub name: WorkspaceName,
    /// The owner of a workspace never changes.
    pub owner: Owner,
    /// Name of the template that the workspace was created from.
    pub template: String,
    /// The template's command (an IDE) when the workspace was created. Empty if there is none.
    pub command: Vec<String>,
    /// The template's environment, overridden by the workspace's own.
    pub env: BTreeMap<String, String>,
    /// The template's policy, overridden by the workspace's own values.
    pub policy: Policy,
    /// Resources requested while awake. The reserved ones are [`crate::status::Status::allocated`].
    #[serde(default)]
    pub resources: Resources,
    /// Requested size of the volume. `None` is the template's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_bytes: Option<u64>,
    pub desired_state: DesiredState,
    /// Identifies the last request to wake or to sleep. A workspace that fell asleep wakes only for
    /// another request than [`crate::status::Status::observed_request`].
    #[serde(default)]
    pub request_seq: u64,
    /// Archive whose files the workspace starts with.
    #[serde(default)]
    pub source: Option<ArchiveKey>,
    pub created: Timestamp,
    /// Request id of the create call. A repeated call with the same id finds the workspace.
    pub request_id: String,
}

impl fmt::Debug for Spec {
    /// Shows only the names of environment variables, because their values may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spec")
            .field("id", &self.id)
            .field("name", &self.name)
            .field("owner", &self.owner)
            .field("template", &self.template)
            .field("command", &self.command)
            .field("env", &self.env.keys())
            .field("policy", &self.policy)
            .field("resources", &self.resources)
            .field("storage_bytes", &self.storage_bytes)
            .field("desired_state", &self.desired_state)
            .field("request_seq", &self.request_seq)
            .field("source", &self.source)
            .field("created", &self.created)
            .field("request_id", &self.request_id)
            .finish()
    }
}

/// What users want of a workspace, and may change at any time. The store owns it: requests change it
/// there, by a [`crate::spec_change::SpecChange`], and the driver observes the result.
#[derive(Clone, PartialEq, Eq)]
pub struct DesiredSpec {
    pub desired_state: DesiredState,
    /// The number that [`Spec::request_seq`] describes.
    pub request_seq: u64,
    pub resources: Resources,
    pub policy: Policy,
    pub env: BTreeMap<String, String>,
}

impl fmt::Debug for DesiredSpec {
    /// Shows only the names of environment variables, because their values may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DesiredSpec")
            .field("desired_state", &self.desired_state)
            .field("request_seq", &self.request_seq)
            .field("resources", &self.resources)
            .field("policy", &self.policy)
            .field("env", &self.env.keys())
            .finish()
    }
}

impl Spec {
    /// Returns the parts that may change.
    pub fn desired(&self) -> DesiredSpec {
        DesiredSpec {
            desired_state: self.desired_state,
            request_seq: self.request_seq,
            resources: self.resources,
            policy: self.policy.clone(),
            env: self.env.clone(),
        }
    }

    /// Returns this spec with the parts that may change replaced.
    #[must_use]
    pub fn with(&self, desired: &DesiredSpec) -> Self {
        let DesiredSpec { desired_state, request_seq, resources, policy, env } = desired.clone();
        Self { desired_state, request_seq, resources, policy, env, ..self.clone() }
    }

    /// Returns whether the spec requests `Awake` and the status has not acted on that request.
    pub fn is_wake_requested(&self, status: &Status) -> bool {
        self.desired_state == DesiredState::Awake && status.observed_request != Some(self.request_seq)
    }
}

impl DesiredState {
    /// Returns whether the workspace is being deleted, with or without an archive.
    pub fn is_gone(self) -> bool {
        matches!(self, Self::Deleted | Self::Discarded)
    }
}

impl Resources {
    /// Fails if no workspace may have these resources.
    pub fn check(self) -> Result<(), UnreasonableResources> {
        if !(1..=MAX_CPU_MILLIS).contains(&self.cpu_millis) {
            return Err(UnreasonableResources::Cpu);
        }
        match (MIN_MEMORY_BYTES..=MAX_MEMORY_BYTES).contains(&self.memory_bytes) {
            true => Ok(()),
            false => Err(UnreasonableResources::Memory),
        }
    }

    /// Returns these resources with the given values replaced.
    #[must_use]
    pub fn with(self, overrides: ResourceOverrides) -> Self {
        Self {
            cpu_millis: overrides.cpu_millis.unwrap_or(self.cpu_millis),
            memory_bytes: overrides.memory_bytes.unwrap_or(self.memory_bytes),
        }
    }

    /// Returns whether each resource is at most that of `other`.
    pub fn fits_in(self, other: Self) -> bool {
        self.cpu_millis <= other.cpu_millis && self.memory_bytes <= other.memory_bytes
    }

    /// Returns the smaller value of each resource.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.min(other.cpu_millis),
            memory_bytes: self.memory_bytes.min(other.memory_bytes),
        }
    }

    /// Returns the larger value of each resource.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_of_spec_hides_values_of_environment() {
        let spec = Spec {
            id: WorkspaceId::from_bits(1),
            name: "demo".parse().expect("a name"),
            owner: "alice".parse().expect("an owner"),
            template: "shell".to_owned(),
            command: Vec::new(),
            env: [("API_TOKEN".to_owned(), "hunter2".to_owned())].into(),
            policy: Policy::default(),
            resources: Resources::default(),
            storage_bytes: None,
            desired_state: DesiredState::Awake,
            request_seq: 0,
            source: None,
            created: Timestamp(0),
            request_id: String::new(),
        };
        let shown = format!("{spec:?}");
        assert!(shown.contains(r#"env: ["API_TOKEN"]"#), "{shown}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
