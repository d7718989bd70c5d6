//! A workspace as JSON shows it.

use podling_proto::control::v1 as proto;
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    activity::Activity,
    policy::JsonPolicy,
    scalar::{Time, enum_label},
};

/// One user's environment.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Workspace {
    /// Twelve characters of lower-case base32; never used again.
    pub(super) id: String,
    /// Unique per owner.
    name: String,
    owner: String,
    template: String,
    policy: JsonPolicy,
    #[schemars(extend("enum" = states()))]
    state: String,
    /// Why it is in this state, for people.
    reason: String,
    since: Time,
    created: Time,
    /// Whether the agent's heartbeats arrive; if not, nothing is known and nothing is concluded.
    #[schemars(extend("enum" = ["connected", "unknown", "unspecified"]))]
    connection: String,
    /// Of the last heartbeat.
    #[serde(skip_serializing_if = "Option::is_none")]
    activity: Option<Activity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<Agent>,
    /// When the control plane will look again by itself, if ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_transition: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_transition_reason: Option<String>,
    /// Grows with every change.
    version: u64,
    /// How often its agent had to be started again since it was last healthy.
    restarts: u32,
    /// While it is queued, or awake and waits for more than it has: its place in the line, 1 is next.
    #[serde(skip_serializing_if = "Option::is_none")]
    queue_position: Option<u32>,
    /// What it shall have of its owner's share while it is awake.
    resources: Resources,
    /// What it has of it just now.
    #[serde(skip_serializing_if = "Option::is_none")]
    given: Option<Resources>,
    /// It was deleted, and only its backups are left.
    deleted: bool,
    /// While it is archived or restored: how far that is.
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<Progress>,
}

/// How far something is.
#[derive(Debug, Serialize, JsonSchema)]
struct Progress {
    /// "saving": its files go into the archive; "proving": the archive is read back and compared; "fetching": the archive goes to its
    /// agent; "unpacking": its files come out of it.
    #[schemars(extend("enum" = ["saving", "proving", "fetching", "unpacking", "unspecified"]))]
    stage: String,
    /// Saving and unpacking: files, folders and links.
    entries: u64,
    /// Absent: not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    total_entries: Option<u64>,
    /// Saving and unpacking: of content; else of the archive.
    bytes: u64,
    /// Absent: not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    total_bytes: Option<u64>,
}

/// A share of its owner's room.
#[derive(Debug, Serialize, JsonSchema)]
struct Resources {
    /// Thousandths of a core.
    cpu_millis: u64,
    memory_bytes: u64,
}

/// One run of its agent.
#[derive(Debug, Serialize, JsonSchema)]
struct Agent {
    boot_id: String,
    /// The epoch of that run's byte logs.
    epoch: u64,
    version: String,
    /// SHA-256 of its certificate (DER), lower-case hex.
    key_fingerprint: String,
    capabilities: Vec<String>,
    /// "unix:/…" or "https://host:port".
    address: String,
}

/// The words for states, in their order.
fn states() -> Vec<&'static str> {
    crate::snapshot::STATES.iter().map(|(_, name)| *name).collect()
}

impl From<proto::Workspace> for Workspace {
    fn from(workspace: proto::Workspace) -> Self {
        Self {
            state: enum_label(workspace.state().as_str_name()),
            connection: enum_label(workspace.connection().as_str_name()),
            id: workspace.id,
            name: workspace.name,
            owner: workspace.owner,
            template: workspace.template,
            policy: workspace.policy.unwrap_or_default().into(),
            reason: workspace.reason,
            since: workspace.since.unwrap_or_default().into(),
            created: workspace.created.unwrap_or_default().into(),
            activity: workspace.activity.map(Into::into),
            agent: workspace.agent.map(Into::into),
            next_transition: workspace.next_transition.map(Into::into),
            next_transition_reason: Some(workspace.next_transition_reason).filter(|text| !text.is_empty()),
            version: workspace.version,
            restarts: workspace.restarts,
            queue_position: Some(workspace.queue_position).filter(|place| *place > 0),
            resources: workspace.resources.unwrap_or_default().into(),
            given: workspace.given.map(Into::into),
            deleted: workspace.deleted,
            progress: workspace.progress.map(Into::into),
        }
    }
}

impl From<Option<proto::Workspace>> for Workspace {
    /// The services' answers always hold one.
    fn from(workspace: Option<proto::Workspace>) -> Self {
        workspace.unwrap_or_default().into()
    }
}

impl From<proto::Resources> for Resources {
    fn from(resources: proto::Resources) -> Self {
        Self { cpu_millis: resources.cpu_millis, memory_bytes: resources.memory_bytes }
    }
}

impl From<proto::Progress> for Progress {
    fn from(progress: proto::Progress) -> Self {
        let known = |total: u64| Some(total).filter(|total| *total > 0);
        Self {
            stage: enum_label(progress.stage().as_str_name()),
            entries: progress.entries,
            total_entries: known(progress.total_entries),
            bytes: progress.bytes,
            total_bytes: known(progress.total_bytes),
        }
    }
}

impl From<proto::AgentInfo> for Agent {
    fn from(agent: proto::AgentInfo) -> Self {
        Self {
            boot_id: agent.boot_id,
            epoch: agent.epoch,
            version: agent.version,
            key_fingerprint: agent.key_fingerprint,
            capabilities: agent.capabilities,
            address: agent.address,
        }
    }
}
