//! Activity at one moment: what everybody is shown of it. Must not counters how it came about.

use std::time::{Duration, Instant};

use super::{
    assessment::ActivityAssessment, cpu_io::ProcessUsage, leases::KeepAwakeLease, warning::SleepWarning,
};

/// Activity at one moment.
#[derive(Debug, Clone)]
pub struct ActivitySnapshot {
    /// The verdict and why.
    pub assessment: ActivityAssessment,
    /// Idle time that counts.
    pub counted_idle: Duration,
    /// How much of it the policy asks for.
    pub idle_timeout: Duration,
    /// Those that hold.
    pub leases: Vec<KeepAwakeLease>,
    /// The workspace will sleep unless it is used.
    pub warning: Option<SleepWarning>,
    /// What the processes use.
    pub usage: ProcessUsage,
    /// Terminals that are open.
    pub terminals: u32,
    /// Bytes that were ever printed to terminals.
    pub terminal_bytes: u64,
    /// When.
    pub at: Instant,
}

impl ActivitySnapshot {
    /// Whether somebody who looks at both sees the same, times aside.
    pub fn is_equivalent(&self, other: &Self) -> bool {
        self.leases == other.leases
            && self.warning == other.warning
            && self.assessment.is_equivalent(&other.assessment)
    }
}
