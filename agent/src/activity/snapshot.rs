//! The workspace's activity at one time, as heartbeats and watchers report it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    UrgentActivity, assessment::ActivityAssessment, command_failure::CommandFailure, cpu_io::ProcessUsage,
    leases::KeepAwakeLease, warning::SleepNotice,
};

#[derive(Debug, Clone)]
pub struct ActivitySnapshot {
    pub assessment: ActivityAssessment,
    /// Idle time observed between acknowledged heartbeats.
    pub counted_idle: Duration,
    /// Counted idle time after which the policy lets the workspace sleep.
    pub idle_timeout: Duration,
    /// Leases that had not expired, ordered by name.
    pub leases: Vec<KeepAwakeLease>,
    /// The control plane's pending sleep warning, if any.
    pub warning: Option<SleepNotice>,
    /// The last failure of the workspace's own command, until the command has run for a while.
    pub command_failure: Option<Arc<CommandFailure>>,
    pub usage: ProcessUsage,
    /// Number of open terminals.
    pub terminals: u32,
    /// Bytes printed to terminals since the agent started.
    pub terminal_bytes: u64,
    pub at: Instant,
}

impl ActivitySnapshot {
    /// Returns whether a watcher sees no difference between the snapshots. Compares the
    /// assessments, the leases, the warning and the failure of the workspace's command.
    pub fn is_equivalent(&self, other: &Self) -> bool {
        self.leases == other.leases
            && self.warning == other.warning
            && self.command_failure == other.command_failure
            && self.assessment.is_equivalent(&other.assessment)
    }

    /// Returns the part whose changes are reported at once.
    pub fn urgent(&self) -> UrgentActivity {
        UrgentActivity { level: self.assessment.level, command_fails: self.command_failure.is_some() }
    }
}
