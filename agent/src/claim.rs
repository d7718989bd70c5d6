//! The claim: what the control plane told this agent to serve. Must not know how it arrived.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use podling_proto::token::VerifyingKeys;
use tokio::sync::watch;

/// Which workspace this agent serves, and how.
#[derive(Clone)]
pub struct Claim {
    /// The workspace's id.
    pub workspace_id: String,
    /// Its name, for people.
    pub workspace_name: String,
    /// The life of the byte logs that this run of the agent holds.
    pub epoch: u64,
    /// Thresholds and caps.
    pub policy: AgentPolicy,
    /// The environment of every terminal and process. May hold secrets: never logged.
    pub env: BTreeMap<String, String>,
    /// The workspace's own command (an IDE); empty: none.
    pub command: Vec<String>,
    /// Only the storage is wanted: nothing is started, nothing but an archive is written. Stays as it was claimed first.
    pub maintenance: bool,
    /// Who may sign tokens for this agent.
    pub token_keys: VerifyingKeys,
}

/// What the control plane lets count, and for how long.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentPolicy {
    /// Counted idle time before sleep.
    pub idle_timeout: Duration,
    /// How long work (CPU, bytes, a kernel) holds after the last intent.
    pub work_cap: Duration,
    /// How long presence (a foreground job, an open IDE page) holds after the last intent.
    pub presence_cap: Duration,
    /// Longest keep-awake lease.
    pub lease_cap: Duration,
    /// How long `active` lasts after an intent.
    pub active_for: Duration,
    /// Over how long CPU and bytes are averaged.
    pub work_window: Duration,
    /// From this share of a core on, processes count as work.
    pub cpu_cores: f64,
    /// From this rate on, bytes count as work.
    pub io_bytes_per_second: f64,
    /// Between two heartbeats.
    pub beat_interval: Duration,
    /// Output kept for each terminal that is opened from now on.
    pub ring_bytes: usize,
    /// Terminals at once, ended ones that are kept included.
    pub max_terminals: usize,
    /// Processes at once.
    pub max_processes: usize,
}

/// Everybody's view of the claim: `None` until the control plane has made one.
pub type ClaimReceiver = watch::Receiver<Option<Arc<Claim>>>;

impl Default for AgentPolicy {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(15 * 60),
            work_cap: Duration::from_secs(12 * 60 * 60),
            presence_cap: Duration::from_secs(60 * 60),
            lease_cap: Duration::from_secs(24 * 60 * 60),
            active_for: Duration::from_secs(60),
            work_window: Duration::from_secs(60),
            cpu_cores: 0.05,
            io_bytes_per_second: 64.0 * 1024.0,
            beat_interval: Duration::from_secs(15),
            ring_bytes: 1024 * 1024,
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
