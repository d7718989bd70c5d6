//! Policies in the JSON of requests and responses.

use podling_proto::control::v1 as proto;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::scalar::{Seconds, not_null};

/// Durations in seconds, each from 1 s to 365 days; `max_awake` may also be 0. A field that is
/// absent in a request takes the template's value in a new workspace, and otherwise keeps its
/// value.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Policy")]
pub(super) struct JsonPolicy {
    /// Idle time after which the workspace falls asleep; default 15 min.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Seconds")]
    idle_timeout: Option<Seconds>,
    /// Longest time after the last intent for which work (CPU, IO) makes the workspace `busy`;
    /// default 12 h.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Seconds")]
    work_cap: Option<Seconds>,
    /// Longest time after the last intent for which presence (a foreground job) makes the workspace
    /// `busy`; default 1 h.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Seconds")]
    presence_cap: Option<Seconds>,
    /// Longest time after its start or the last intent for which a call under way, such as a command
    /// that a client follows, makes the workspace `active`; default 12 h.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Seconds")]
    call_cap: Option<Seconds>,
    /// Time between the warning of users and the sleep, at most half the idle timeout; default 2
    /// min.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Seconds")]
    warning: Option<Seconds>,
    /// Longest time awake, even if the workspace is in use. Absent in a response if there is no
    /// limit. A request removes the limit with 0.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Seconds")]
    max_awake: Option<Seconds>,
    /// Time asleep before the storage is archived and removed; default 24 h.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Seconds")]
    archive_after: Option<Seconds>,
    /// Retention of archives; default 30 days.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Seconds")]
    keep_archives: Option<Seconds>,
}

impl From<JsonPolicy> for proto::Policy {
    fn from(policy: JsonPolicy) -> Self {
        Self {
            idle_timeout: policy.idle_timeout.map(Into::into),
            work_cap: policy.work_cap.map(Into::into),
            presence_cap: policy.presence_cap.map(Into::into),
            call_cap: policy.call_cap.map(Into::into),
            warning: policy.warning.map(Into::into),
            max_awake: policy.max_awake.map(Into::into),
            archive_after: policy.archive_after.map(Into::into),
            keep_archives: policy.keep_archives.map(Into::into),
        }
    }
}

impl From<proto::Policy> for JsonPolicy {
    fn from(policy: proto::Policy) -> Self {
        Self {
            idle_timeout: policy.idle_timeout.map(Into::into),
            work_cap: policy.work_cap.map(Into::into),
            presence_cap: policy.presence_cap.map(Into::into),
            call_cap: policy.call_cap.map(Into::into),
            warning: policy.warning.map(Into::into),
            max_awake: policy.max_awake.map(Into::into),
            archive_after: policy.archive_after.map(Into::into),
            keep_archives: policy.keep_archives.map(Into::into),
        }
    }
}
