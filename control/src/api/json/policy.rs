//! A policy as JSON, in requests and in responses.

use podling_proto::control::v1 as proto;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::scalar::{Seconds, not_null};

/// Durations in seconds, each from 1 s to 365 days (`max_awake` also 0). A field that a request
/// leaves out has the template's value, or keeps its current one.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Policy")]
pub(super) struct JsonPolicy {
    /// Observed idle time before the workspace falls asleep; default 15 min.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Seconds")]
    idle_timeout: Option<Seconds>,
    /// How long CPU, I/O or a notebook kernel keep it `busy` after the last intent; default 12 h.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Seconds")]
    work_cap: Option<Seconds>,
    /// How long a foreground job or an open IDE page keep it `busy` after the last intent; default
    /// 1 h.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Seconds")]
    presence_cap: Option<Seconds>,
    /// How long before it falls asleep its users are warned, at most half the idle timeout; default
    /// 2 min.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Seconds")]
    warning: Option<Seconds>,
    /// Longest time awake, even in use. No limit if a response leaves it out, or a request sets it
    /// to 0.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Seconds")]
    max_awake: Option<Seconds>,
    /// Time asleep before the storage is archived and released; default 24 h.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Seconds")]
    archive_after: Option<Seconds>,
    /// How long archives are retained; default 30 days.
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
            warning: policy.warning.map(Into::into),
            max_awake: policy.max_awake.map(Into::into),
            archive_after: policy.archive_after.map(Into::into),
            keep_archives: policy.keep_archives.map(Into::into),
        }
    }
}
