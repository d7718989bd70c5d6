//! The claim, by which the control plane assigns a workspace to this agent, and the policy in it with
//! its defaults and bounds.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use podling_proto::{control::v1 as wire, token::VerifyingKeys};
use tokio::sync::watch;

/// Longest duration in a policy. Longer ones are cut, so that adding them to a time never
/// overflows.
const MAX_DURATION: Duration = Duration::from_secs(366 * 24 * 3600);
/// Bounds of the heartbeat interval. A shorter interval would keep the agent busy. With a longer
/// one the control plane would notice too late that the agent is dead.
const HEARTBEAT_INTERVAL: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(60));
/// Bounds of the window over which CPU and bytes are averaged.
const WORK_WINDOW: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(3600));
/// Upper bound of the policy's longest lease.
const MAX_LEASE: Duration = Duration::from_secs(24 * 3600);
/// Bounds of the output retained per terminal, in bytes.
const BYTE_LOG_BYTES: (u64, u64) = (64 * 1024, 64 * 1024 * 1024);
/// Upper bound of the policy's limits for terminals and processes.
const MAX_TERMINALS_OR_PROCESSES: u32 = 4096;

/// The workspace that this agent serves, and its policy.
#[derive(Clone)]
pub struct Claim {
    pub workspace_id: String,
    /// Name of the workspace, for display.
    pub workspace_name: String,
    /// Epoch of the byte logs of this run of the agent.
    pub epoch: u64,
    pub policy: AgentPolicy,
    /// Environment of every terminal and process. May hold secrets, so it is never logged.
    pub env: BTreeMap<String, String>,
    /// The workspace's own command, such as an IDE. Empty if there is none.
    pub command: Vec<String>,
    /// Whether the agent runs in maintenance mode. It then starts nothing, and admits no intent
    /// except a restore. A repeated claim does not change this.
    pub maintenance: bool,
    /// Public keys of the control plane that verify tokens for this agent.
    pub token_keys: VerifyingKeys,
}

/// Thresholds, caps and bounds that the control plane sets: the part of the workspace's policy that
/// the agent needs, and the settings of the agent.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentPolicy {
    /// Counted idle time after which the workspace may sleep.
    pub idle_timeout: Duration,
    /// Time after the last intent during which CPU and IO use counts.
    pub work_cap: Duration,
    /// Time after the last intent during which a foreground job counts.
    pub presence_cap: Duration,
    /// Time after its start or the last intent during which a client's call counts.
    pub call_cap: Duration,
    /// Longest duration of a keep-awake lease.
    pub lease_cap: Duration,
    /// Time for which the level stays `active` after an intent.
    pub active_for: Duration,
    /// Window over which CPU and bytes are averaged.
    pub work_window: Duration,
    /// CPU use at which processes count as work; 1.0 is one full core.
    pub cpu_cores: f64,
    /// Bytes read and written per second at which processes count as work.
    pub io_bytes_per_second: f64,
    /// Time between two heartbeats.
    pub heartbeat_interval: Duration,
    /// Bytes of output retained for each terminal that is created from now on.
    pub byte_log_bytes: usize,
    /// Terminals at once, including ended ones that are retained.
    pub max_terminals: usize,
    /// Processes that clients may run at once.
    pub max_processes: usize,
}

/// Watches the claim: `None` until the control plane has made one.
pub type ClaimReceiver = watch::Receiver<Option<Arc<Claim>>>;

impl Default for AgentPolicy {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(15 * 60),
            work_cap: Duration::from_secs(12 * 60 * 60),
            presence_cap: Duration::from_secs(60 * 60),
            call_cap: Duration::from_secs(12 * 60 * 60),
            lease_cap: Duration::from_secs(24 * 60 * 60),
            active_for: Duration::from_secs(60),
            work_window: Duration::from_secs(60),
            cpu_cores: 0.05,
            io_bytes_per_second: 64.0 * 1024.0,
            heartbeat_interval: Duration::from_secs(15),
            byte_log_bytes: 1024 * 1024,
            max_terminals: 64,
            max_processes: 256,
        }
    }
}

impl AgentPolicy {
    /// Fills missing values from the default policy and clamps the others to their bounds.
    pub fn from_wire(policy: &wire::Policy, settings: &wire::AgentSettings) -> Self {
        let default = Self::default();
        let span = |given: Option<prost_types::Duration>, default: Duration| {
            given.and_then(|d| Duration::try_from(d).ok()).map_or(default, |d| d.min(MAX_DURATION))
        };
        let within = |d: Duration, (least, most): (Duration, Duration)| d.clamp(least, most);
        let rate = |given: f64, default: f64| if given.is_finite() && given > 0.0 { given } else { default };
        let count = |given: u32, default: usize| match given {
            0 => default,
            _ => given.min(MAX_TERMINALS_OR_PROCESSES) as usize,
        };
        let (heartbeat_interval, work_window) = (settings.heartbeat_interval, settings.work_window);
        Self {
            idle_timeout: span(policy.idle_timeout, default.idle_timeout),
            work_cap: span(policy.work_cap, default.work_cap),
            presence_cap: span(policy.presence_cap, default.presence_cap),
            call_cap: span(policy.call_cap, default.call_cap),
            lease_cap: span(settings.lease_cap, default.lease_cap).min(MAX_LEASE),
            active_for: span(settings.active_for, default.active_for),
            work_window: within(span(work_window, default.work_window), WORK_WINDOW),
            cpu_cores: rate(settings.cpu_cores, default.cpu_cores),
            io_bytes_per_second: rate(settings.io_bytes_per_second, default.io_bytes_per_second),
            heartbeat_interval: within(
                span(heartbeat_interval, default.heartbeat_interval),
                HEARTBEAT_INTERVAL,
            ),
            byte_log_bytes: match settings.byte_log_bytes {
                0 => default.byte_log_bytes,
                given => given.clamp(BYTE_LOG_BYTES.0, BYTE_LOG_BYTES.1) as usize,
            },
            max_terminals: count(settings.max_terminals, default.max_terminals),
            max_processes: count(settings.max_processes, default.max_processes),
        }
    }
}

impl std::fmt::Debug for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Claim")
            .field("workspace_id", &self.workspace_id)
            .field("epoch", &self.epoch)
            .field("env", &self.env.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn out_of_bounds_policy_is_clamped() {
        let span = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        let policy =
            wire::Policy { work_cap: span(i64::MAX), idle_timeout: span(-5), ..wire::Policy::default() };
        let settings = wire::AgentSettings {
            heartbeat_interval: span(0),
            lease_cap: span(i64::MAX),
            cpu_cores: f64::NAN,
            byte_log_bytes: u64::MAX,
            ..wire::AgentSettings::default()
        };
        let read = AgentPolicy::from_wire(&policy, &settings);
        assert_eq!(read.heartbeat_interval, HEARTBEAT_INTERVAL.0);
        assert_eq!(read.lease_cap, MAX_LEASE);
        assert_eq!(read.work_cap, MAX_DURATION);
        assert_eq!(read.idle_timeout, AgentPolicy::default().idle_timeout);
        assert_eq!(read.cpu_cores, AgentPolicy::default().cpu_cores);
        assert_eq!(read.byte_log_bytes as u64, BYTE_LOG_BYTES.1);
    }
}
