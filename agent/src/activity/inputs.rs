//! Converts presence, leases and work into observed signals for the assessment. Pure.

use std::time::Instant;

use super::{
    assessment::{ActivitySignal, ObservedSignal},
    cpu_io::ProcessUsage,
    leases::KeepAwakeLease,
};
use crate::claim::AgentPolicy;

/// Foreground commands and totals of all terminals.
#[derive(Debug, Clone, Default)]
pub struct TerminalPresence {
    /// Foreground commands as English text for display, such as `vim in terminal 'main'`.
    pub foreground: Vec<String>,
    /// Number of open terminals.
    pub terminals: u32,
    /// Bytes printed to terminals since the agent started.
    pub terminal_bytes: u64,
}

/// Converts the foreground commands to signals, which count while they are observed.
pub(super) fn from_presence(
    presence: TerminalPresence,
    now: Instant,
) -> impl Iterator<Item = ObservedSignal> {
    presence.foreground.into_iter().map(move |detail| ObservedSignal {
        signal: ActivitySignal::ForegroundJob,
        detail,
        last_seen: now,
        until: None,
    })
}

/// Converts a lease to a signal, which counts until the lease expires.
pub(super) fn from_lease(lease: &KeepAwakeLease) -> ObservedSignal {
    let reason = if lease.reason.is_empty() { String::new() } else { format!(": {}", lease.reason) };
    ObservedSignal {
        signal: ActivitySignal::Lease,
        detail: format!("lease '{}'{reason}", lease.name),
        last_seen: lease.taken,
        until: Some(lease.expires_at),
    }
}

/// Converts CPU and IO use that reaches the policy's thresholds to signals. They count for one
/// window after the last sample, which was taken at `at`.
pub(super) fn from_work(usage: &ProcessUsage, at: Instant, policy: &AgentPolicy) -> Vec<ObservedSignal> {
    let observed = |signal, detail| ObservedSignal {
        signal,
        detail,
        last_seen: at,
        until: Some(at + policy.work_window),
    };
    let mut signals = Vec::new();
    if usage.cpu_cores >= policy.cpu_cores {
        let subject = usage.busiest.as_ref().map_or_else(
            || "processes use".to_owned(),
            |b| format!("{} (pid {}) and others use", b.name, b.pid),
        );
        let subject = match &usage.busiest {
            // A process that causes at least 80 % of the CPU use is named alone.
            Some(b) if b.cores >= usage.cpu_cores * 0.8 => format!("{} (pid {}) uses", b.name, b.pid),
            _ => subject,
        };
        signals.push(observed(
            ActivitySignal::Cpu,
            format!("{subject} {:.0} % of a core", usage.cpu_cores * 100.0),
        ));
    }
    if usage.io_bytes_per_second >= policy.io_bytes_per_second {
        let detail = format!("processes move {:.0} KiB/s", usage.io_bytes_per_second / 1024.0);
        signals.push(observed(ActivitySignal::Io, detail));
    }
    signals
}
