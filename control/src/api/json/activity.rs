//! Serializes the activity of a workspace for the JSON API.

use podling_proto::agent::v1 as proto;
use schemars::JsonSchema;
use serde::Serialize;

use super::request::{Seconds, Time, enum_label};

/// Whether the workspace is in use, and the evidence for it.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Activity")]
pub(super) struct JsonActivity {
    #[schemars(extend("enum" = ["active", "busy", "idle", "unspecified"]))]
    level: String,
    /// Signals behind the level, strongest first. Includes signals that no longer count because
    /// their cap has passed.
    evidence: Vec<JsonEvidence>,
    /// Idle time that lies between acknowledged heartbeats.
    counted_idle: Seconds,
    /// Idle time after which the workspace may fall asleep.
    idle_timeout: Seconds,
    leases: Vec<JsonLease>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<JsonUsage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<Time>,
    /// The warning that users were sent of a coming sleep. Absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    sleep_warning: Option<JsonSleepWarning>,
    /// Present while the workspace's own command fails.
    #[serde(skip_serializing_if = "Option::is_none")]
    command_failure: Option<JsonCommandFailure>,
}

/// Failure of the workspace's own command, such as an IDE. The agent restarts the command.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "CommandFailure")]
struct JsonCommandFailure {
    /// Program of the command, as the template names it.
    program: String,
    #[schemars(extend("enum" = ["not-started", "ended", "unspecified"]))]
    kind: String,
    /// Text for people: "jupyter ended: exit code 1".
    detail: String,
    /// Failures in a row.
    failures: u32,
    /// The last lines that the command printed, oldest first.
    output: Vec<String>,
}

/// One signal that supports the activity level.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Evidence")]
struct JsonEvidence {
    /// A value of podling.agent.v1.Signal: "keystroke", "client-write", "cpu", "foreground-job",
    /// "lease", … A later version may add values.
    signal: String,
    /// Text for people: "vim in terminal 'main'".
    detail: String,
    /// Time since the signal was last observed.
    age: Seconds,
    /// Time for which the signal still counts if it is not observed again.
    holds_for: Seconds,
    /// The signal is present, but no longer counts because its cap has passed.
    capped: bool,
}

/// A named, expiring request to keep the workspace awake.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Lease")]
struct JsonLease {
    name: String,
    reason: String,
    remaining: Seconds,
}

/// Resources that the workspace's processes use.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Usage")]
struct JsonUsage {
    /// CPU use in cores, averaged over the policy's work window (at most 60 s). 1.0 is one core.
    cpu_cores: f64,
    memory_bytes: u64,
    /// Bytes read and written per second, averaged over the policy's work window (at most 60 s).
    io_bytes_per_second: f64,
    processes: u32,
    terminals: u32,
}

/// The warning that the workspace falls asleep.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "SleepWarning")]
struct JsonSleepWarning {
    /// Announced time of the sleep. May be in the past.
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<Time>,
    #[schemars(extend("enum" = ["idle", "max-awake", "requested", "deleted", "shutdown", "unspecified"]))]
    cause: String,
}

impl From<proto::ActivityState> for JsonActivity {
    fn from(activity: proto::ActivityState) -> Self {
        Self {
            level: enum_label(activity.level().as_str_name()),
            evidence: activity.evidence.into_iter().map(Into::into).collect(),
            counted_idle: activity.counted_idle.unwrap_or_default().into(),
            idle_timeout: activity.idle_timeout.unwrap_or_default().into(),
            leases: activity.leases.into_iter().map(Into::into).collect(),
            usage: activity.usage.map(Into::into),
            at: activity.at.map(Into::into),
            sleep_warning: activity.sleep_warning.map(|warning| JsonSleepWarning {
                cause: enum_label(warning.cause().as_str_name()),
                at: warning.at.map(Into::into),
            }),
            command_failure: activity.command_failure.map(|failure| JsonCommandFailure {
                kind: enum_label(failure.kind().as_str_name()),
                program: failure.program,
                detail: failure.detail,
                failures: failure.failures,
                output: failure.output,
            }),
        }
    }
}

impl From<proto::Evidence> for JsonEvidence {
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

impl From<proto::Lease> for JsonLease {
    fn from(lease: proto::Lease) -> Self {
        let remaining = lease.remaining.unwrap_or_default().into();
        Self { name: lease.name, reason: lease.reason, remaining }
    }
}

impl From<proto::Usage> for JsonUsage {
    fn from(usage: proto::Usage) -> Self {
        // JSON has no infinity and no NaN. If an agent reports such a value, the client receives 0.
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
