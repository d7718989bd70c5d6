//! JSON of workspaces and their activity, as `--json` prints it.

use podling_proto::{
    agent::v1::{ActivityState, Evidence},
    control::v1::{
        AgentConnection, AgentInfo, NextStep, Policy, Progress, Resources, StateReason, WaitReason, Workspace,
    },
    text,
};
use serde::Serialize;

use crate::{
    duration::seconds,
    workspace_text::{activity_word, state},
};

/// A workspace, as `--json` prints it.
#[derive(Debug, Serialize)]
pub struct WorkspaceJson {
    pub name: String,
    pub id: String,
    /// `queued`, `starting`, `awake`, …
    pub state: &'static str,
    /// `active`, `busy` or `idle`; null if unknown.
    pub activity_level: Option<&'static str>,
    /// Code of the reason for the state: `agent-connected`, `idle`, …
    pub reason: String,
    /// The reason in English, with its details.
    pub message: String,
    /// Time at which the workspace entered its state, RFC 3339.
    pub since: Option<String>,
    /// Whether heartbeats of the agent arrive: `connected` or `unknown`.
    pub connection: String,
    pub template: String,
    pub owner: String,
    pub created: Option<String>,
    /// Idle time so far, as the last heartbeat reported it.
    pub counted_idle_seconds: Option<f64>,
    /// Idle time after which the workspace falls asleep.
    pub idle_timeout_seconds: Option<f64>,
    /// Step that the control plane takes next by itself; null if it only waits for requests.
    pub next: Option<NextStepJson>,
    /// Code of the reason why the start or resize in progress cannot proceed yet.
    pub waiting: Option<String>,
    /// Failures of the agent in a row (failed starts, ends, silence) since the workspace was last
    /// healthy.
    pub restarts: u32,
    /// Position in the admission queue, 1 is next; null if not queued.
    pub queue_position: Option<u32>,
    /// Resources that the workspace asks for; they count against its owner's quota while it is
    /// awake.
    pub requested: Option<ResourcesJson>,
    /// Resources that are reserved in the owner's quota now; null if none are.
    pub allocated: Option<ResourcesJson>,
    /// Time at which the workspace falls asleep, RFC 3339; null unless its users were warned.
    pub sleeps_at: Option<String>,
    /// True if the workspace was deleted and only its archives are left.
    pub deleted: bool,
    /// Progress of archiving or restoring.
    pub progress: Option<ProgressJson>,
    pub policy: Option<PolicyJson>,
    pub agent: Option<AgentJson>,
}

/// Policy of a workspace, as `--json` prints it. Null means no limit.
#[derive(Debug, Serialize)]
pub struct PolicyJson {
    pub idle_timeout_seconds: Option<f64>,
    pub warning_seconds: Option<f64>,
    /// Time after the last input of a user or client for which busy programs keep it awake.
    pub work_cap_seconds: Option<f64>,
    /// Time after the last input of a user or client for which a foreground program keeps it awake.
    pub presence_cap_seconds: Option<f64>,
    /// Time after its start or the last input for which a client's call keeps it awake.
    pub call_cap_seconds: Option<f64>,
    pub max_awake_seconds: Option<f64>,
    pub archive_after_seconds: Option<f64>,
    pub keep_archives_seconds: Option<f64>,
}

/// CPU and memory of a workspace, as `--json` prints them.
#[derive(Debug, Serialize)]
pub struct ResourcesJson {
    /// Thousandths of a core.
    pub cpu_millis: u64,
    pub memory_bytes: u64,
}

/// Progress of archiving or restoring, as `--json` prints it. Null means unknown.
#[derive(Debug, Serialize)]
pub struct ProgressJson {
    /// `archiving`, `proving`, `downloading` or `extracting`.
    pub stage: String,
    /// Number of files, directories and links done.
    pub entries: u64,
    pub total_entries: Option<u64>,
    /// Bytes done. Counts file content while archiving and extracting, otherwise the zip.
    pub bytes: u64,
    pub total_bytes: Option<u64>,
}

/// One run of a workspace's agent, as `--json` prints it.
#[derive(Debug, Serialize)]
pub struct AgentJson {
    /// Unique id of the run.
    pub boot_id: String,
    /// Epoch of the byte logs of this run.
    pub epoch: u64,
    pub version: String,
    /// SHA-256 of the agent's certificate (DER), lower-case hex.
    pub key_fingerprint: String,
    /// Address of the agent, `unix:/…` or `https://host:port`.
    pub address: String,
}

/// The step that the control plane takes next, as `--json` prints it.
#[derive(Debug, Serialize)]
pub struct NextStepJson {
    /// `sleep`, `archive`, `restart-agent`, …
    pub step: String,
    /// Time of the step, RFC 3339.
    pub at: Option<String>,
    /// The step in English, as a clause.
    pub message: String,
}

/// Activity of a workspace, as `podling explain --json` prints it.
#[derive(Debug, Serialize)]
pub struct ActivityJson {
    /// `active`, `busy` or `idle`.
    pub level: &'static str,
    /// Evidence for the level, strongest first.
    pub evidence: Vec<EvidenceJson>,
    /// Idle time so far.
    pub counted_idle_seconds: f64,
    /// Idle time after which the workspace falls asleep.
    pub idle_timeout_seconds: f64,
    pub leases: Vec<LeaseJson>,
    /// Cores used, averaged over the policy's work window (at most 60 s).
    pub cpu_cores: f64,
    pub memory_bytes: u64,
    pub processes: u32,
    pub terminals: u32,
    /// Warning that the workspace falls asleep; null if its users are not warned now.
    pub sleep_warning: Option<SleepWarningJson>,
    /// Failure of the workspace's own command; null if it does not fail.
    pub command_failure: Option<ProgramFailureJson>,
    /// Time at which the agent reported the activity, RFC 3339.
    pub at: Option<String>,
}

/// Warning that the workspace falls asleep, as `podling explain --json` prints it.
#[derive(Debug, Serialize)]
pub struct SleepWarningJson {
    /// Time at which the workspace falls asleep unless it is used, RFC 3339.
    pub at: Option<String>,
    /// `idle`, `max-awake` or `requested`.
    pub cause: String,
}

/// Failure of the workspace's own command, as `podling explain --json` prints it.
#[derive(Debug, Serialize)]
pub struct ProgramFailureJson {
    pub program: String,
    /// Kind of the failure: `not-started` or `ended`.
    pub kind: String,
    /// The failure in English: `jupyter ended: exit code 1`.
    pub detail: String,
    /// Number of failures since the command last ran without one.
    pub failures: u32,
    /// The last lines that the command printed, oldest first.
    pub output: Vec<String>,
}

/// One signal behind an activity level, as `podling explain --json` prints it.
#[derive(Debug, Serialize)]
pub struct EvidenceJson {
    /// Name of the signal: `keystroke`, `cpu`, `lease`, …
    pub signal: String,
    /// Description of the signal in English: `vim in terminal 'main'`.
    pub detail: String,
    /// Time since the signal was last observed.
    pub age_seconds: f64,
    /// Time for which the signal still counts if it is not observed again.
    pub holds_for_seconds: f64,
    /// True if the signal no longer counts, because its cap has passed.
    pub capped: bool,
}

/// A keep-awake lease, as `podling explain --json` prints it.
#[derive(Debug, Serialize)]
pub struct LeaseJson {
    pub name: String,
    pub reason: String,
    /// Time until the lease expires.
    pub remaining_seconds: f64,
}

/// Returns the code of a reason, as JSON shows it: `agent-connected`.
pub fn reason_word(reason: &StateReason) -> String {
    text::word(reason.code().as_str_name(), "STATE_REASON_CODE_")
}

/// Returns the word of an enum value, as JSON shows it. An unspecified value is `unknown`.
fn word(name: &str, prefix: &str) -> String {
    match text::word(name, prefix) {
        unspecified if unspecified == "unspecified" => "unknown".to_owned(),
        word => word,
    }
}

fn wait_word(wait: WaitReason) -> String {
    text::word(wait.as_str_name(), "WAIT_REASON_")
}

impl From<&NextStep> for NextStepJson {
    fn from(next: &NextStep) -> Self {
        Self {
            step: text::word(next.step().as_str_name(), "STEP_"),
            at: next.at.as_ref().map(ToString::to_string),
            message: text::next_step(next),
        }
    }
}

impl From<&Workspace> for WorkspaceJson {
    fn from(workspace: &Workspace) -> Self {
        let activity = workspace.activity.as_ref();
        let is_connected = workspace.connection() == AgentConnection::Connected;
        let time = |at: &Option<prost_types::Timestamp>| at.as_ref().map(ToString::to_string);
        Self {
            name: workspace.name.clone(),
            id: workspace.id.clone(),
            state: state(workspace.state()),
            // The activity may have changed since the agent's connection was lost.
            activity_level: activity
                .filter(|_| is_connected)
                .and_then(|activity| activity_word(activity.level())),
            reason: workspace.reason.as_ref().map(reason_word).unwrap_or_default(),
            message: workspace.reason.as_ref().map(text::state_reason).unwrap_or_default(),
            since: time(&workspace.since),
            connection: word(workspace.connection().as_str_name(), "AGENT_CONNECTION_"),
            template: workspace.template.clone(),
            owner: workspace.owner.clone(),
            created: time(&workspace.created),
            counted_idle_seconds: activity.and_then(|activity| seconds(activity.counted_idle)),
            idle_timeout_seconds: workspace.policy.and_then(|policy| seconds(policy.idle_timeout)),
            next: workspace.next.as_ref().map(NextStepJson::from),
            waiting: workspace.waiting.as_ref().map(|waiting| wait_word(waiting.wait())),
            restarts: workspace.restarts,
            queue_position: Some(workspace.queue_position).filter(|position| *position > 0),
            requested: workspace.requested.as_ref().map(ResourcesJson::from),
            allocated: workspace.allocated.as_ref().map(ResourcesJson::from),
            sleeps_at: activity
                .filter(|_| is_connected)
                .and_then(|activity| time(&activity.sleep_warning.as_ref()?.at)),
            deleted: workspace.deleted,
            progress: workspace.progress.as_ref().map(ProgressJson::from),
            policy: workspace.policy.as_ref().map(PolicyJson::from),
            agent: workspace.agent.as_ref().map(AgentJson::from),
        }
    }
}

impl From<&AgentInfo> for AgentJson {
    fn from(agent: &AgentInfo) -> Self {
        Self {
            boot_id: agent.boot_id.clone(),
            epoch: agent.epoch,
            version: agent.version.clone(),
            key_fingerprint: agent.key_fingerprint.clone(),
            address: agent.address.clone(),
        }
    }
}

impl From<&ActivityState> for ActivityJson {
    fn from(activity: &ActivityState) -> Self {
        let usage = activity.usage.unwrap_or_default();
        let lease = |lease: &podling_proto::agent::v1::Lease| LeaseJson {
            name: lease.name.clone(),
            reason: lease.reason.clone(),
            remaining_seconds: seconds(lease.remaining).unwrap_or_default(),
        };
        Self {
            level: activity_word(activity.level()).unwrap_or("unknown"),
            evidence: activity.evidence.iter().map(EvidenceJson::from).collect(),
            counted_idle_seconds: seconds(activity.counted_idle).unwrap_or_default(),
            idle_timeout_seconds: seconds(activity.idle_timeout).unwrap_or_default(),
            leases: activity.leases.iter().map(lease).collect(),
            cpu_cores: usage.cpu_cores,
            memory_bytes: usage.memory_bytes,
            processes: usage.processes,
            terminals: usage.terminals,
            sleep_warning: activity.sleep_warning.as_ref().map(|warning| SleepWarningJson {
                at: warning.at.as_ref().map(ToString::to_string),
                cause: text::word(warning.cause().as_str_name(), "SLEEP_CAUSE_"),
            }),
            command_failure: activity.command_failure.as_ref().map(|failure| ProgramFailureJson {
                program: failure.program.clone(),
                kind: text::word(failure.kind().as_str_name(), "COMMAND_FAILURE_KIND_"),
                detail: failure.detail.clone(),
                failures: failure.failures,
                output: failure.output.clone(),
            }),
            at: activity.at.as_ref().map(ToString::to_string),
        }
    }
}

impl From<&Evidence> for EvidenceJson {
    fn from(evidence: &Evidence) -> Self {
        Self {
            signal: word(evidence.signal().as_str_name(), "SIGNAL_"),
            detail: evidence.detail.clone(),
            age_seconds: seconds(evidence.age).unwrap_or_default(),
            holds_for_seconds: seconds(evidence.holds_for).unwrap_or_default(),
            capped: evidence.capped,
        }
    }
}

impl From<&Policy> for PolicyJson {
    fn from(policy: &Policy) -> Self {
        Self {
            idle_timeout_seconds: seconds(policy.idle_timeout),
            warning_seconds: seconds(policy.warning),
            work_cap_seconds: seconds(policy.work_cap),
            presence_cap_seconds: seconds(policy.presence_cap),
            call_cap_seconds: seconds(policy.call_cap),
            max_awake_seconds: seconds(policy.max_awake),
            archive_after_seconds: seconds(policy.archive_after),
            keep_archives_seconds: seconds(policy.keep_archives),
        }
    }
}

impl From<&Resources> for ResourcesJson {
    fn from(resources: &Resources) -> Self {
        Self { cpu_millis: resources.cpu_millis, memory_bytes: resources.memory_bytes }
    }
}

impl From<&Progress> for ProgressJson {
    fn from(progress: &Progress) -> Self {
        let if_known = |total: u64| Some(total).filter(|total| *total > 0);
        Self {
            stage: word(progress.stage().as_str_name(), "STAGE_"),
            entries: progress.entries,
            total_entries: if_known(progress.total_entries),
            bytes: progress.bytes,
            total_bytes: if_known(progress.total_bytes),
        }
    }
}
