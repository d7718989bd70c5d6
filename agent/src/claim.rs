//! The claim, by which the control plane assigns a workspace to this agent.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use podling_proto::token::VerifyingKeys;
use tokio::sync::watch;

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

/// Thresholds, caps and bounds that the control plane sets.
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

impl std::fmt::Debug for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Claim")
            .field("workspace_id", &self.workspace_id)
            .field("epoch", &self.epoch)
            .field("env", &self.env.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}
