//! Workspaces and activity as people and scripts see them: words for enums, JSON documents. Total and pure.

use podling_proto::{
    agent::v1::{ActivityLevel, ActivityState, Evidence, Signal},
    control::v1::{AgentConnection, AgentInfo, State, Workspace},
};
use serde::Serialize;

use crate::{duration, output::Tone, policy::PolicyView, progress::ProgressView, resources::ResourcesView};

/// A workspace, for scripts.
#[derive(Debug, Serialize)]
pub struct WorkspaceView {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
    /// `queued`, `starting`, `awake`, …
    pub state: &'static str,
    /// `active`, `busy`, `idle`; null while nothing is known.
    pub activity: Option<&'static str>,
    /// Why it is in this state.
    pub reason: String,
    /// Since when.
    pub since: Option<String>,
    /// `connected` or `unknown`.
    pub connection: &'static str,
    /// What it was made from.
    pub template: String,
    /// Whose it is.
    pub owner: String,
    /// When it was made.
    pub created: Option<String>,
    /// Idle time that counts.
    pub counted_idle_seconds: Option<f64>,
    /// Idle time before sleep.
    pub idle_timeout_seconds: Option<f64>,
    /// When the control plane looks again.
    pub next_transition: Option<String>,
    /// Why then.
    pub next_transition_reason: Option<String>,
    /// Starts since it was last healthy.
    pub restarts: u32,
    /// Its place in the line of those who wait for room, 1 is next; null: it waits for none.
    pub queue_position: Option<u32>,
    /// What it shall have of its owner's share while it is awake.
    pub resources: Option<ResourcesView>,
    /// What it has of it just now; null while it has none.
    pub given: Option<ResourcesView>,
    /// When it sleeps unless it is used, if people were warned of that.
    pub sleeps_at: Option<String>,
    /// It was deleted, and only its archives are left.
    pub deleted: bool,
    /// While it is archived or restored: how far that is.
    pub progress: Option<ProgressView>,
    /// How long it may do what.
    pub policy: Option<PolicyView>,
    /// The agent that serves it.
    pub agent: Option<AgentView>,
}

/// An agent, for scripts.
#[derive(Debug, Serialize)]
pub struct AgentView {
    /// One run of it.
    pub boot_id: String,
    /// The life of its byte logs.
    pub epoch: u64,
    /// Its version.
    pub version: String,
    /// SHA-256 of its certificate.
    pub key_fingerprint: String,
    /// Where it listens.
    pub address: String,
}

/// Activity, for scripts.
#[derive(Debug, Serialize)]
pub struct ActivityView {
    /// `active`, `busy` or `idle`.
    pub level: &'static str,
    /// The strongest first.
    pub evidence: Vec<EvidenceView>,
    /// Idle time that counts.
    pub counted_idle_seconds: f64,
    /// Idle time before sleep.
    pub idle_timeout_seconds: f64,
    /// Promises that it stays awake.
    pub leases: Vec<LeaseView>,
    /// Cores used over the last minute.
    pub cpu_cores: f64,
    /// Memory used.
    pub memory_bytes: u64,
    /// Processes.
    pub processes: u32,
    /// Terminals.
    pub terminals: u32,
    /// People were told that it sleeps.
    pub sleep_warning: Option<SleepWarningView>,
    /// When this was so.
    pub at: Option<String>,
}

/// A warning before sleep, for scripts.
#[derive(Debug, Serialize)]
pub struct SleepWarningView {
    /// When it sleeps unless it is used.
    pub at: Option<String>,
    /// Why.
    pub reason: String,
}

/// One reason, for scripts.
#[derive(Debug, Serialize)]
pub struct EvidenceView {
    /// What kind.
    pub signal: &'static str,
    /// In words.
    pub detail: String,
    /// How long ago it was seen.
    pub age_seconds: f64,
    /// How long it holds if nothing new comes.
    pub holds_for_seconds: f64,
    /// It no longer counts.
    pub capped: bool,
}

/// A lease, for scripts.
#[derive(Debug, Serialize)]
pub struct LeaseView {
    /// Its name.
    pub name: String,
    /// What for.
    pub reason: String,
    /// How long it still holds.
    pub remaining_seconds: f64,
}

/// The word for a state.
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

/// How a state is shown.
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

/// The word for an activity level, if there is one.
pub fn activity_word(level: ActivityLevel) -> Option<&'static str> {
    match level {
        ActivityLevel::Unspecified => None,
        ActivityLevel::Idle => Some("idle"),
        ActivityLevel::Busy => Some("busy"),
        ActivityLevel::Active => Some("active"),
    }
}

/// The word for the state of the connection to the agent.
pub fn connection_word(connection: AgentConnection) -> &'static str {
    match connection {
        AgentConnection::Connected => "connected",
        AgentConnection::Unspecified | AgentConnection::Unknown => "unknown",
    }
}

/// The word for a signal.
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

/// Seconds, for scripts.
pub fn seconds(duration: Option<prost_types::Duration>) -> Option<f64> {
    duration::from_wire(duration).map(|d| d.as_secs_f64())
}

impl From<&Workspace> for WorkspaceView {
    fn from(workspace: &Workspace) -> Self {
        let activity = workspace.activity.as_ref();
        let is_connected = workspace.connection() == AgentConnection::Connected;
        let time = |at: &Option<prost_types::Timestamp>| at.as_ref().map(ToString::to_string);
        Self {
            name: workspace.name.clone(),
            id: workspace.id.clone(),
            state: state(workspace.state()),
            // What was heard before the link went says nothing about now.
            activity: activity.filter(|_| is_connected).and_then(|activity| activity_word(activity.level())),
            reason: workspace.reason.clone(),
            since: time(&workspace.since),
            connection: connection_word(workspace.connection()),
            template: workspace.template.clone(),
            owner: workspace.owner.clone(),
            created: time(&workspace.created),
            counted_idle_seconds: activity.and_then(|activity| seconds(activity.counted_idle)),
            idle_timeout_seconds: workspace.policy.and_then(|policy| seconds(policy.idle_timeout)),
            next_transition: time(&workspace.next_transition),
            next_transition_reason: Some(workspace.next_transition_reason.clone()).filter(|r| !r.is_empty()),
            restarts: workspace.restarts,
            queue_position: Some(workspace.queue_position).filter(|place| *place > 0),
            resources: workspace.resources.as_ref().map(ResourcesView::from),
            given: workspace.given.as_ref().map(ResourcesView::from),
            sleeps_at: activity
                .filter(|_| is_connected)
                .and_then(|activity| time(&activity.sleep_warning.as_ref()?.at)),
            deleted: workspace.deleted,
            progress: workspace.progress.as_ref().map(ProgressView::from),
            policy: workspace.policy.as_ref().map(PolicyView::from),
            agent: workspace.agent.as_ref().map(AgentView::from),
        }
    }
}

impl From<&AgentInfo> for AgentView {
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

impl From<&ActivityState> for ActivityView {
    fn from(activity: &ActivityState) -> Self {
        let usage = activity.usage.unwrap_or_default();
        let lease = |lease: &podling_proto::agent::v1::Lease| LeaseView {
            name: lease.name.clone(),
            reason: lease.reason.clone(),
            remaining_seconds: seconds(lease.remaining).unwrap_or_default(),
        };
        Self {
            level: activity_word(activity.level()).unwrap_or("unknown"),
            evidence: activity.evidence.iter().map(EvidenceView::from).collect(),
            counted_idle_seconds: seconds(activity.counted_idle).unwrap_or_default(),
            idle_timeout_seconds: seconds(activity.idle_timeout).unwrap_or_default(),
            leases: activity.leases.iter().map(lease).collect(),
            cpu_cores: usage.cpu_cores,
            memory_bytes: usage.memory_bytes,
            processes: usage.processes,
            terminals: usage.terminals,
            sleep_warning: activity.sleep_warning.as_ref().map(|warning| SleepWarningView {
                at: warning.at.as_ref().map(ToString::to_string),
                reason: warning.reason.clone(),
            }),
            at: activity.at.as_ref().map(ToString::to_string),
        }
    }
}

impl From<&Evidence> for EvidenceView {
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
