//! Serializes workspaces for the JSON API.

use podling_proto::control::v1 as proto;
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    activity::JsonActivity,
    policy::JsonPolicy,
    reason::{JsonNextStep, JsonStateReason},
    scalar::{Time, enum_label},
};

/// One user's environment. It outlives its processes.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Workspace")]
pub(super) struct JsonWorkspace {
    /// Twelve characters of lower-case base32; never reused.
    pub(super) id: String,
    /// Unique among the owner's workspaces.
    name: String,
    owner: String,
    template: String,
    policy: JsonPolicy,
    #[schemars(extend("enum" = states()))]
    state: String,
    reason: JsonStateReason,
    since: Time,
    created: Time,
    /// Whether heartbeats of the agent arrive. "unknown" does not mean that the workspace is idle.
    #[schemars(extend("enum" = ["connected", "unknown", "unspecified"]))]
    connection: String,
    /// The activity that the agent reported last.
    #[serde(skip_serializing_if = "Option::is_none")]
    activity: Option<JsonActivity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<JsonAgent>,
    /// The next step if no event comes before. Absent if only an event can change the state.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<JsonNextStep>,
    /// Reason why the start or resize in progress cannot proceed yet. Absent if nothing blocks it.
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting: Option<JsonStateReason>,
    /// Version of this workspace. Grows with every change.
    version: u64,
    /// Failed starts and lost agents in a row since the workspace was last healthy.
    restarts: u32,
    /// Position in the admission queue; 1 is next. Absent if the workspace is not queued.
    #[serde(skip_serializing_if = "Option::is_none")]
    queue_position: Option<u32>,
    /// Resources that the workspace takes from its owner's quota while it is awake.
    requested: JsonResources,
    /// Resources that are reserved in the quota now. Absent if there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    allocated: Option<JsonResources>,
    /// Whether the workspace was deleted and only its archives are left.
    deleted: bool,
    /// Whether the workspace is being deleted: it is archived, then removed. The undelete call takes
    /// that back until the storage is released.
    deleting: bool,
    /// Progress of archiving or restoring. Absent at other times.
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<JsonProgress>,
}

/// Progress of an archive or a restore.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Progress")]
struct JsonProgress {
    /// "archiving": files are read into the archive. "proving": the archive is read back and
    /// compared. "downloading": the archive is sent to the agent. "extracting": files are written
    /// from it.
    #[schemars(extend("enum" = ["archiving", "proving", "downloading", "extracting", "unspecified"]))]
    stage: String,
    /// Number of files, directories and links so far. Counted only while archiving or extracting.
    entries: u64,
    /// Absent if the total is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    total_entries: Option<u64>,
    /// Number of bytes so far: of the files while archiving or extracting, otherwise of the zip.
    bytes: u64,
    /// Absent if the total is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    total_bytes: Option<u64>,
}

/// CPU and memory of a workspace.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Resources")]
struct JsonResources {
    /// Thousandths of a core.
    cpu_millis: u64,
    memory_bytes: u64,
}

/// One run of the workspace's agent.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Agent")]
struct JsonAgent {
    boot_id: String,
    /// Epoch of the byte logs of this run.
    epoch: u64,
    version: String,
    /// SHA-256 of the agent's certificate (DER), in lower-case hex.
    key_fingerprint: String,
    capabilities: Vec<String>,
    /// Address of the agent: "unix:/…" or "https://host:port".
    address: String,
}

/// Returns the names of all states.
fn states() -> Vec<&'static str> {
    crate::snapshot::STATES.iter().map(|(_, name)| *name).collect()
}

impl From<proto::Workspace> for JsonWorkspace {
    fn from(workspace: proto::Workspace) -> Self {
        Self {
            state: enum_label(workspace.state().as_str_name()),
            connection: enum_label(workspace.connection().as_str_name()),
            id: workspace.id,
            name: workspace.name,
            owner: workspace.owner,
            template: workspace.template,
            policy: workspace.policy.unwrap_or_default().into(),
            reason: workspace.reason.unwrap_or_default().into(),
            since: workspace.since.unwrap_or_default().into(),
            created: workspace.created.unwrap_or_default().into(),
            activity: workspace.activity.map(Into::into),
            agent: workspace.agent.map(Into::into),
            next: workspace.next.map(Into::into),
            waiting: workspace.waiting.map(Into::into),
            version: workspace.version,
            restarts: workspace.restarts,
            queue_position: Some(workspace.queue_position).filter(|position| *position > 0),
            requested: workspace.requested.unwrap_or_default().into(),
            allocated: workspace.allocated.map(Into::into),
            deleted: workspace.deleted,
            deleting: workspace.deleting,
            progress: workspace.progress.map(Into::into),
        }
    }
}

impl From<Option<proto::Workspace>> for JsonWorkspace {
    /// Converts the workspace of a response. The services always set it.
    fn from(workspace: Option<proto::Workspace>) -> Self {
        workspace.unwrap_or_default().into()
    }
}

impl From<proto::Resources> for JsonResources {
    fn from(resources: proto::Resources) -> Self {
        Self { cpu_millis: resources.cpu_millis, memory_bytes: resources.memory_bytes }
    }
}

impl From<proto::Progress> for JsonProgress {
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

impl From<proto::AgentInfo> for JsonAgent {
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
