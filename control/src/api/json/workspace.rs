//! Workspaces in JSON, with their policies, reasons and next steps. A reason has its code as a
//! word, its fields, and the English text.

use podling_proto::{control::v1 as proto, text};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    activity::JsonActivity,
    request::{Seconds, Time, enum_label, not_null},
};

/// One user's environment. It outlives its processes.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Workspace")]
pub(crate) struct JsonWorkspace {
    /// Twelve characters of lower-case base32; never reused.
    pub(crate) id: String,
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

/// The reason for the state of a workspace. Branch on `code`.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "StateReason")]
pub(super) struct JsonStateReason {
    /// A code of podling/control/v1/reasons.proto: "agent-connected", "idle", …
    code: String,
    /// The reason in English. May change between versions.
    message: String,
    /// Free text from the agent, the backend or the operating system.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    /// Key of the archive that the reason concerns.
    #[serde(skip_serializing_if = "Option::is_none")]
    archive: Option<String>,
    /// Failed starts and lost agents in a row.
    #[serde(skip_serializing_if = "Option::is_none")]
    failures: Option<u32>,
    /// Reason why a start or a resize cannot proceed yet: "quota-exceeded", "unschedulable", …
    #[serde(skip_serializing_if = "Option::is_none")]
    wait: Option<String>,
    /// Reason why the agent declined to sleep: "in-use", …
    #[serde(skip_serializing_if = "Option::is_none")]
    decline: Option<String>,
    /// The action that failed: "start-agent", …
    #[serde(skip_serializing_if = "Option::is_none")]
    operation: Option<String>,
    /// Code of the underlying failure. `message` includes its text.
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<String>,
}

/// The next step of a workspace if no event comes before. Branch on `step`.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "NextStep")]
struct JsonNextStep {
    /// Name of the step: "sleep", "archive", "restart-agent", …
    step: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<Time>,
    /// The step in English. May change between versions.
    message: String,
    /// Cause of the sleep, for "sleep": "idle", "max-awake", "requested" or "deleted".
    #[serde(skip_serializing_if = "Option::is_none")]
    sleep_cause: Option<String>,
    /// The action that failed, for "retry-action": "start-agent", …
    #[serde(skip_serializing_if = "Option::is_none")]
    operation: Option<String>,
}

/// An action of a user that changes what happens next.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Remedy")]
pub(super) struct JsonRemedy {
    /// Name of the remedy: "use", "keep-awake", "wake", …
    remedy: String,
    /// The remedy in English, with NAME for the workspace. May change between versions.
    message: String,
}

impl From<proto::StateReason> for JsonStateReason {
    fn from(reason: proto::StateReason) -> Self {
        let is_waiting = reason.code() == proto::StateReasonCode::Waiting;
        let is_declined = reason.code() == proto::StateReasonCode::SleepDeclined;
        Self {
            code: enum_label(reason.code().as_str_name()),
            message: text::state_reason(&reason),
            wait: is_waiting.then(|| enum_label(reason.wait().as_str_name())),
            decline: is_declined.then(|| enum_label(reason.decline().as_str_name())),
            operation: operation(reason.operation()),
            cause: reason.cause.as_ref().map(|cause| enum_label(cause.code().as_str_name())),
            detail: Some(reason.detail).filter(|detail| !detail.is_empty()),
            archive: Some(reason.archive).filter(|archive| !archive.is_empty()),
            failures: Some(reason.failures).filter(|failures| *failures > 0),
        }
    }
}

impl From<proto::NextStep> for JsonNextStep {
    fn from(next: proto::NextStep) -> Self {
        let sleeps = next.step() == proto::next_step::Step::Sleep;
        Self {
            step: enum_label(next.step().as_str_name()),
            at: next.at.map(Into::into),
            message: text::next_step(&next),
            sleep_cause: sleeps.then(|| enum_label(next.sleep_cause().as_str_name())),
            operation: operation(next.operation()),
        }
    }
}

impl From<proto::Remedy> for JsonRemedy {
    fn from(remedy: proto::Remedy) -> Self {
        Self { remedy: enum_label(remedy.as_str_name()), message: text::remedy(remedy, "NAME") }
    }
}

fn operation(operation: proto::Operation) -> Option<String> {
    (operation != proto::Operation::Unspecified).then(|| enum_label(operation.as_str_name()))
}

/// Durations in seconds, each from 1 s to 365 days; `max_awake` may also be 0. A field that is
/// absent in a request takes the template's value in a new workspace, and otherwise keeps its
/// value.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Policy")]
pub(super) struct JsonPolicy {
    /// Idle time after which the workspace falls asleep; default 15 min.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Seconds")]
    idle_timeout: Option<Seconds>,
    /// Longest time after the last intent for which work (CPU, IO) makes the workspace `busy`;
    /// default 12 h.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Seconds")]
    work_cap: Option<Seconds>,
    /// Longest time after the last intent for which presence (a foreground job) makes the workspace
    /// `busy`; default 1 h.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Seconds")]
    presence_cap: Option<Seconds>,
    /// Longest time after its start or the last intent for which a call under way, such as a command
    /// that a client follows, makes the workspace `active`; default 12 h.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Seconds")]
    call_cap: Option<Seconds>,
    /// Time between the warning of users and the sleep, at most half the idle timeout; default 2
    /// min.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Seconds")]
    warning: Option<Seconds>,
    /// Longest time awake, even if the workspace is in use. Absent in a response if there is no
    /// limit. A request removes the limit with 0.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Seconds")]
    max_awake: Option<Seconds>,
    /// Time asleep before the storage is archived and removed; default 24 h.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Seconds")]
    archive_after: Option<Seconds>,
    /// Retention of archives; default 30 days.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Seconds")]
    keep_archives: Option<Seconds>,
}

impl From<JsonPolicy> for proto::Policy {
    fn from(policy: JsonPolicy) -> Self {
        Self {
            idle_timeout: policy.idle_timeout.map(Into::into),
            work_cap: policy.work_cap.map(Into::into),
            presence_cap: policy.presence_cap.map(Into::into),
            call_cap: policy.call_cap.map(Into::into),
            warning: policy.warning.map(Into::into),
            max_awake: policy.max_awake.map(Into::into),
            archive_after: policy.archive_after.map(Into::into),
            keep_archives: policy.keep_archives.map(Into::into),
        }
    }
}

impl From<proto::Policy> for JsonPolicy {
    fn from(policy: proto::Policy) -> Self {
        Self {
            idle_timeout: policy.idle_timeout.map(Into::into),
            work_cap: policy.work_cap.map(Into::into),
            presence_cap: policy.presence_cap.map(Into::into),
            call_cap: policy.call_cap.map(Into::into),
            warning: policy.warning.map(Into::into),
            max_awake: policy.max_awake.map(Into::into),
            archive_after: policy.archive_after.map(Into::into),
            keep_archives: policy.keep_archives.map(Into::into),
        }
    }
}
