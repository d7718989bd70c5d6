//! JSON forms of workspaces and their activity, and the public names of their enum values.

use podling_proto::{
    agent::v1::{ActivityLevel, ActivityState, Evidence, Signal},
    control::v1::{AgentConnection, AgentInfo, NextStep, State, StateReason, WaitReason, Workspace},
    text,
};
use serde::Serialize;

use crate::{duration, output::Tone, policy::PolicyJson, progress::ProgressJson, resources::ResourcesJson};

/// JSON form of a workspace.
#[derive(Debug, Serialize)]
pub struct WorkspaceJson {
    pub name: String,
    pub id: String,
    /// `queued`, `starting`, `awake`, …
    pub state: &'static str,
    /// `active`, `busy` or `idle`; null if unknown.
    pub activity_level: Option<&'static str>,
    /// Why the workspace is in its state, as a code: `agent-connected`, `idle`, …
    pub reason: String,
    /// The reason in English, with its details.
    pub message: String,
    /// When the workspace entered its state.
    pub since: Option<String>,
    /// Connection to the agent: `connected` or `unknown`.
    pub connection: &'static str,
    pub template: String,
    pub owner: String,
    pub created: Option<String>,
    /// Idle time that counts.
    pub counted_idle_seconds: Option<f64>,
    /// Idle time after which the workspace falls asleep.
    pub idle_timeout_seconds: Option<f64>,
    /// What happens next if nothing else does.
    pub next: Option<NextStepJson>,
    /// What the start or the resize under way waits for, as a code.
    pub waiting: Option<String>,
    /// Restarts of the agent since the workspace was last healthy.
    pub restarts: u32,
    /// Position in the admission queue, 1 is next; null if not queued.
    pub queue_position: Option<u32>,
    /// Resources that the workspace takes from its owner's quota while it is awake.
    pub requested: Option<ResourcesJson>,
    /// Resources that are reserved in the quota now.
    pub allocated: Option<ResourcesJson>,
    /// When the workspace falls asleep unless it is used, if its users were warned of that.
    pub sleeps_at: Option<String>,
    /// The workspace was deleted and only its archives are left.
    pub deleted: bool,
    /// Progress of archiving or restoring.
    pub progress: Option<ProgressJson>,
    pub policy: Option<PolicyJson>,
    pub agent: Option<AgentJson>,
}

/// JSON form of an agent.
#[derive(Debug, Serialize)]
pub struct AgentJson {
    /// Identifies one run of the agent.
    pub boot_id: String,
    /// Epoch of the byte logs of that run.
    pub epoch: u64,
    pub version: String,
    /// SHA-256 of the agent's certificate (DER), lower-case hex.
    pub key_fingerprint: String,
    /// Address of the agent, `unix:/…` or `https://host:port`.
    pub address: String,
}

/// JSON form of the next step.
#[derive(Debug, Serialize)]
pub struct NextStepJson {
    /// `sleep`, `archive`, `restart-agent`, …
    pub step: String,
    pub at: Option<String>,
    /// The step in English.
    pub message: String,
}

/// JSON form of the activity.
#[derive(Debug, Serialize)]
pub struct ActivityJson {
    /// `active`, `busy` or `idle`.
    pub level: &'static str,
    /// Evidence for the level, strongest first.
    pub evidence: Vec<EvidenceJson>,
    /// Idle time that counts.
    pub counted_idle_seconds: f64,
    /// Idle time after which the workspace falls asleep.
    pub idle_timeout_seconds: f64,
    pub leases: Vec<LeaseJson>,
    /// Cores used over the last minute.
    pub cpu_cores: f64,
    pub memory_bytes: u64,
    pub processes: u32,
    pub terminals: u32,
    /// Set while users are warned that the workspace falls asleep.
    pub sleep_warning: Option<SleepWarningJson>,
    /// Time of the report.
    pub at: Option<String>,
}

/// JSON form of the warning before sleep.
#[derive(Debug, Serialize)]
pub struct SleepWarningJson {
    /// When the workspace falls asleep unless it is used.
    pub at: Option<String>,
    /// `idle`, `max-awake` or `requested`.
    pub cause: String,
}

/// JSON form of the evidence for an activity level.
#[derive(Debug, Serialize)]
pub struct EvidenceJson {
    /// Name of the signal: `keystroke`, `cpu`, `lease`, …
    pub signal: &'static str,
    /// Text for people: `vim in terminal 'main'`.
    pub detail: String,
    /// Time since the signal was last observed.
    pub age_seconds: f64,
    /// Time for which it still counts if it is not observed again.
    pub holds_for_seconds: f64,
    /// The cap of the signal has passed, so it no longer counts.
    pub capped: bool,
}

/// JSON form of a keep-awake lease.
#[derive(Debug, Serialize)]
pub struct LeaseJson {
    pub name: String,
    pub reason: String,
    /// Time until the lease ends.
    pub remaining_seconds: f64,
}

/// Returns the public name of a state.
pub fn state(state: State) -> &'static str {
    match state {
        State::Unspecified => "unknown",
        State::Queued => "queued",
        State::Starting => "starting",
        State::Awake => "awake",
        State::FallingAsleep => "falling-asleep",
        State::Asleep => "asleep",
        State::Archiving => "archiving",
        State::Archived => "archived",
        State::Deleting => "deleting",
        State::Failed => "failed",
    }
}

/// Returns the colour tone of a state; `None` if it has none.
pub fn state_tone(state: State) -> Option<Tone> {
    match state {
        State::Awake => Some(Tone::Good),
        State::Failed => Some(Tone::Bad),
        State::Queued | State::Starting | State::FallingAsleep | State::Archiving | State::Deleting => {
            Some(Tone::Notice)
        }
        State::Unspecified | State::Asleep | State::Archived => None,
    }
}

/// Returns the name of an activity level; `None` if it is unspecified.
pub fn activity_word(level: ActivityLevel) -> Option<&'static str> {
    match level {
        ActivityLevel::Unspecified => None,
        ActivityLevel::Idle => Some("idle"),
        ActivityLevel::Busy => Some("busy"),
        ActivityLevel::Active => Some("active"),
    }
}

/// Returns the name of a connection state; an unspecified one is `unknown`.
pub fn connection_word(connection: AgentConnection) -> &'static str {
    match connection {
        AgentConnection::Connected => "connected",
        AgentConnection::Unspecified | AgentConnection::Unknown => "unknown",
    }
}

/// Returns the name of a signal.
pub fn signal(signal: Signal) -> &'static str {
    match signal {
        Signal::Unspecified => "unknown",
        Signal::Keystroke => "keystroke",
        Signal::ClientWrite => "client-write",
        Signal::PortRequest => "port-request",
        Signal::PageVisible => "page-visible",
        Signal::ClientStart => "client-start",
        Signal::Cpu => "cpu",
        Signal::Io => "io",
        Signal::KernelBusy => "kernel-busy",
        Signal::ForegroundJob => "foreground-job",
        Signal::IdeHeartbeat => "ide-heartbeat",
        Signal::Lease => "lease",
    }
}

/// Converts a duration to seconds.
pub fn seconds(duration: Option<prost_types::Duration>) -> Option<f64> {
    duration::from_wire(duration).map(|d| d.as_secs_f64())
}

/// Returns the code of a reason: `agent-connected`.
pub fn reason_word(reason: &StateReason) -> String {
    text::word(reason.code().as_str_name(), "STATE_REASON_CODE_")
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
            // The last report of an agent that is no longer connected does not tell the present
            // activity.
            activity_level: activity
                .filter(|_| is_connected)
                .and_then(|activity| activity_word(activity.level())),
            reason: workspace.reason.as_ref().map(reason_word).unwrap_or_default(),
            message: workspace.reason.as_ref().map(text::state_reason).unwrap_or_default(),
            since: time(&workspace.since),
            connection: connection_word(workspace.connection()),
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
            at: activity.at.as_ref().map(ToString::to_string),
        }
    }
}

impl From<&Evidence> for EvidenceJson {
    fn from(evidence: &Evidence) -> Self {
        Self {
            signal: signal(evidence.signal()),
            detail: evidence.detail.clone(),
            age_seconds: seconds(evidence.age).unwrap_or_default(),
            holds_for_seconds: seconds(evidence.holds_for).unwrap_or_default(),
            capped: evidence.capped,
        }
    }
}
