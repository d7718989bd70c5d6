//! Activity at one moment: what everybody is shown of it. Must not know how it came about.

use std::time::{Duration, Instant};

use super::{leases::Lease, verdict::Judgement, warning::Warning, work::Usage};

/// Activity at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The verdict and why.
    pub judgement: Judgement,
    /// Idle time that counts.
    pub counted_idle: Duration,
    /// How much of it the policy asks for.
    pub idle_timeout: Duration,
    /// Those that hold.
    pub leases: Vec<Lease>,
    /// The workspace will sleep unless it is used.
    pub warning: Option<Warning>,
    /// What the processes use.
    pub usage: Usage,
    /// Terminals that are open.
    pub terminals: u32,
    /// Bytes that were ever printed to terminals.
    pub terminal_bytes: u64,
    /// When.
    pub at: Instant,
}

impl Snapshot {
    /// Whether somebody who looks at both sees the same, times aside.
    pub fn says_the_same(&self, other: &Self) -> bool {
        self.leases == other.leases
            && self.warning == other.warning
            && self.judgement.says_the_same(&other.judgement)
    }
}
