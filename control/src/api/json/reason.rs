//! Reasons and next steps in JSON: the code as a word, its fields, and the English text.

use podling_proto::{control::v1 as proto, text};
use schemars::JsonSchema;
use serde::Serialize;

use super::scalar::{Time, enum_label};

/// The reason for the state of a workspace. Branch on `code`.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "StateReason")]
pub(super) struct JsonStateReason {
    /// A code of podling/control/v1/reasons.proto: "agent-connected", "idle", …
    code: String,
    /// The reason in English. May change between versions.
    message: String,
    /// Free text from the agent, the backend or the operating system.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    /// Key of the archive that the reason concerns.
    #[serde(skip_serializing_if = "Option::is_none")]
    archive: Option<String>,
    /// Failed starts and lost agents in a row.
    #[serde(skip_serializing_if = "Option::is_none")]
    failures: Option<u32>,
    /// Reason why a start or a resize cannot proceed yet: "quota-exceeded", "unschedulable", …
    #[serde(skip_serializing_if = "Option::is_none")]
    wait: Option<String>,
    /// Reason why the agent declined to sleep: "in-use", …
    #[serde(skip_serializing_if = "Option::is_none")]
    decline: Option<String>,
    /// The action that failed: "start-agent", …
    #[serde(skip_serializing_if = "Option::is_none")]
    operation: Option<String>,
    /// Code of the underlying failure. `message` includes its text.
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<String>,
}

/// The next step of a workspace if no event comes before. Branch on `step`.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "NextStep")]
pub(super) struct JsonNextStep {
    /// Name of the step: "sleep", "archive", "restart-agent", …
    step: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<Time>,
    /// The step in English. May change between versions.
    message: String,
    /// Cause of the sleep, for "sleep": "idle", "max-awake", "requested" or "deleted".
    #[serde(skip_serializing_if = "Option::is_none")]
    sleep_cause: Option<String>,
    /// The action that failed, for "retry-action": "start-agent", …
    #[serde(skip_serializing_if = "Option::is_none")]
    operation: Option<String>,
}

/// An action of a user that changes what happens next.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Remedy")]
pub(super) struct JsonRemedy {
    /// Name of the remedy: "use", "keep-awake", "wake", …
    remedy: String,
    /// The remedy in English, with NAME for the workspace. May change between versions.
    message: String,
}

impl From<proto::StateReason> for JsonStateReason {
    fn from(reason: proto::StateReason) -> Self {
        let is_waiting = reason.code() == proto::StateReasonCode::Waiting;
        let is_declined = reason.code() == proto::StateReasonCode::SleepDeclined;
        Self {
            code: enum_label(reason.code().as_str_name()),
            message: text::state_reason(&reason),
            wait: is_waiting.then(|| enum_label(reason.wait().as_str_name())),
            decline: is_declined.then(|| enum_label(reason.decline().as_str_name())),
            operation: operation(reason.operation()),
            cause: reason.cause.as_ref().map(|cause| enum_label(cause.code().as_str_name())),
            detail: Some(reason.detail).filter(|detail| !detail.is_empty()),
            archive: Some(reason.archive).filter(|archive| !archive.is_empty()),
            failures: Some(reason.failures).filter(|failures| *failures > 0),
        }
    }
}

impl From<proto::NextStep> for JsonNextStep {
    fn from(next: proto::NextStep) -> Self {
        let sleeps = next.step() == proto::next_step::Step::Sleep;
        Self {
            step: enum_label(next.step().as_str_name()),
            at: next.at.map(Into::into),
            message: text::next_step(&next),
            sleep_cause: sleeps.then(|| enum_label(next.sleep_cause().as_str_name())),
            operation: operation(next.operation()),
        }
    }
}

impl From<proto::Remedy> for JsonRemedy {
    fn from(remedy: proto::Remedy) -> Self {
        Self { remedy: enum_label(remedy.as_str_name()), message: text::remedy(remedy, "NAME") }
    }
}

fn operation(operation: proto::Operation) -> Option<String> {
    (operation != proto::Operation::Unspecified).then(|| enum_label(operation.as_str_name()))
}
