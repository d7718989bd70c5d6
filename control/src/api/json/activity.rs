//! What an agent says of its workspace's use.

use podling_proto::agent::v1 as proto;
use schemars::JsonSchema;
use serde::Serialize;

use super::scalar::{Seconds, Time, enum_label};

/// Whether somebody or something uses the workspace, and how we know.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Activity {
    #[schemars(extend("enum" = ["active", "busy", "idle", "unspecified"]))]
    level: String,
    /// Strongest first; also capped ones.
    evidence: Vec<Evidence>,
    /// Idle time that counts: witnessed by acknowledged heartbeats.
    counted_idle: Seconds,
    /// How much of it the policy asks for before the workspace may sleep.
    idle_timeout: Seconds,
    leases: Vec<Lease>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<Time>,
    /// There while the workspace is about to sleep for want of use.
    #[serde(skip_serializing_if = "Option::is_none")]
    sleep_warning: Option<SleepWarning>,
}

/// One signal that supports the activity level.
#[derive(Debug, Serialize, JsonSchema)]
struct Evidence {
    /// "keystroke", "client-write", "cpu", "foreground-job", "lease", …: a value of podling.agent.v1.Signal; more may come.
    signal: String,
    /// For people.
    detail: String,
    /// How long ago it was last seen.
    age: Seconds,
    /// How long it still counts if nothing new comes.
    holds_for: Seconds,
    /// It is there, but its cap is over: it no longer counts.
    capped: bool,
}

/// A promise that the workspace must stay awake.
#[derive(Debug, Serialize, JsonSchema)]
struct Lease {
    name: String,
    reason: String,
    remaining: Seconds,
}

/// What the workspace's processes take.
#[derive(Debug, Serialize, JsonSchema)]
struct Usage {
    /// Over the last minute; 1.0 is one core.
    cpu_cores: f64,
    memory_bytes: u64,
    /// Over the last minute.
    io_bytes_per_second: f64,
    processes: u32,
    terminals: u32,
}

/// What people are told.
#[derive(Debug, Serialize, JsonSchema)]
struct SleepWarning {
    /// When the workspace will sleep unless it is used; may have passed already.
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<Time>,
    #[schemars(extend("enum" = ["idle", "max-awake", "requested", "unspecified"]))]
    cause: String,
}

impl From<proto::ActivityState> for Activity {
    fn from(activity: proto::ActivityState) -> Self {
        Self {
            level: enum_label(activity.level().as_str_name()),
            evidence: activity.evidence.into_iter().map(Into::into).collect(),
            counted_idle: activity.counted_idle.unwrap_or_default().into(),
            idle_timeout: activity.idle_timeout.unwrap_or_default().into(),
            leases: activity.leases.into_iter().map(Into::into).collect(),
            usage: activity.usage.map(Into::into),
            at: activity.at.map(Into::into),
            sleep_warning: activity.sleep_warning.map(|warning| SleepWarning {
                cause: enum_label(warning.cause().as_str_name()),
                at: warning.at.map(Into::into),
            }),
        }
    }
}

impl From<proto::Evidence> for Evidence {
    fn from(evidence: proto::Evidence) -> Self {
        Self {
            signal: enum_label(evidence.signal().as_str_name()),
            age: evidence.age.unwrap_or_default().into(),
            holds_for: evidence.holds_for.unwrap_or_default().into(),
            capped: evidence.capped,
            detail: evidence.detail,
        }
    }
}

impl From<proto::Lease> for Lease {
    fn from(lease: proto::Lease) -> Self {
        let remaining = lease.remaining.unwrap_or_default().into();
        Self { name: lease.name, reason: lease.reason, remaining }
    }
}

impl From<proto::Usage> for Usage {
    fn from(usage: proto::Usage) -> Self {
        // JSON has no number for what is none; nobody uses an infinite lot.
        let number = |number: f64| if number.is_finite() { number } else { 0.0 };
        Self {
            cpu_cores: number(usage.cpu_cores),
            memory_bytes: usage.memory_bytes,
            io_bytes_per_second: number(usage.io_bytes_per_second),
            processes: usage.processes,
            terminals: usage.terminals,
        }
    }
}
