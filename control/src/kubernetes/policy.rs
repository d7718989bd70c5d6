//! Timeouts and caps in the specs of workspaces and templates.

use std::time::Duration;

use kube::KubeSchema;
use podling_core::policy::{Policy, PolicyOverrides};
use serde::{Deserialize, Serialize};

use crate::quantity::{duration, duration_words};

/// Durations as [`duration()`] reads them.
const DURATION_PATTERN: &str = concat!(
    r"^([0-9]+(\.[0-9]+)?d)?([0-9]+(\.[0-9]+)?h)?([0-9]+(\.[0-9]+)?m)?",
    r"([0-9]+(\.[0-9]+)?s)?([0-9]+(\.[0-9]+)?ms)?$"
);
/// Returns the CEL expression that converts the text `value` to whole seconds. `duration` of CEL
/// knows no days, and an expression that builds new texts exceeds the API server's cost limit.
fn cel_seconds(value: &str) -> String {
    format!(
        "(({value}.contains('d') ? double({value}.substring(0, {value}.indexOf('d'))) * 86400.0 : 0.0) + \
         ({value}.endsWith('d') ? 0.0 : \
         double(duration({value}.substring({value}.indexOf('d') + 1)).getSeconds())))"
    )
}

/// Returns the CEL rule that checks the range of a duration: 1 s to 365 days.
fn in_range() -> String {
    let seconds = cel_seconds("self");
    format!("{seconds} >= 1.0 && {seconds} <= 31536000.0")
}

/// Returns the CEL rule for a warning and an idle timeout of the same spec.
fn warning_fits() -> String {
    let (warning, idle_timeout) = (cel_seconds("self.warning"), cel_seconds("self.idleTimeout"));
    format!(
        "!has(self.idleTimeout) || !has(self.warning) || {warning} <= 1.0 || \
         {warning} * 2.0 <= {idle_timeout}"
    )
}

macro_rules! policy {
    ($($(#[doc = $doc:literal])* $field:ident;)*) => {
        /// Timeouts and caps as durations ("7d", "36h", "1h30m", "90s"), from 1 s to 365 days. Absent
        /// values come from the template, or else from Podling's defaults.
        #[derive(KubeSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase")]
        #[x_kube(
            validation = Rule::new(warning_fits())
                .message("warning must be at most half of idleTimeout")
        )]
        pub struct PolicySpec {
            $(
                $(#[doc = $doc])*
                #[serde(default, skip_serializing_if = "Option::is_none")]
                #[schemars(length(max = 16), regex(pattern = DURATION_PATTERN))]
                #[x_kube(validation = Rule::new(in_range()).message("must be a duration from 1s to 365d"))]
                pub $field: Option<String>,
            )*
            /// Longest time awake, in use or not; "none" means no limit. Default: none.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            #[schemars(length(max = 16), regex(pattern = format!("^none$|{DURATION_PATTERN}")))]
            #[x_kube(
                validation = Rule::new(format!("self == 'none' || {}", in_range()))
                    .message("must be none, or a duration from 1s to 365d")
            )]
            pub max_awake: Option<String>,
        }
    };
}

policy! {
    /// Idle time after which the workspace falls asleep. Default: 15m.
    idle_timeout;
    /// Time before sleep at which users are warned, at most half the idle timeout. Default: 2m.
    warning;
    /// Time after the last intent for which work (CPU, IO) keeps the workspace awake. Default: 12h.
    work_cap;
    /// Time after the last intent for which presence (a foreground job) keeps the workspace awake.
    /// Default: 1h.
    presence_cap;
    /// Time after its start or the last intent for which a client's call under way, such as a
    /// command that the client follows, keeps the workspace awake. Default: 12h.
    call_cap;
    /// Time asleep after which the storage is archived and removed. Default: 24h.
    archive_after;
    /// Time for which archives are retained. Default: 30d.
    keep_archives;
}

/// The value that means "no limit". If the value is absent, the template's applies.
const NONE: &str = "none";

impl PolicySpec {
    /// Returns the values that the spec sets. Ignores values that cannot be parsed, which an older
    /// CRD may have accepted.
    pub fn overrides(&self) -> PolicyOverrides {
        let time = |text: &Option<String>| text.as_deref().and_then(duration);
        PolicyOverrides {
            idle_timeout: time(&self.idle_timeout),
            warning: time(&self.warning),
            work_cap: time(&self.work_cap),
            presence_cap: time(&self.presence_cap),
            call_cap: time(&self.call_cap),
            archive_after: time(&self.archive_after),
            keep_archives: time(&self.keep_archives),
            max_awake: match self.max_awake.as_deref() {
                Some(NONE) => Some(None),
                _ => time(&self.max_awake).map(Some),
            },
        }
    }

    /// Returns a spec that sets every value of the policy, so that no value comes from a template.
    pub fn of(policy: &Policy) -> Self {
        let words = |time: Duration| Some(duration_words(time));
        // A record of an earlier version may have a longer warning, which the CRD rejects.
        let policy = policy.clone().with_limited_warning();
        Self {
            idle_timeout: words(policy.idle_timeout),
            warning: words(policy.warning),
            work_cap: words(policy.work_cap),
            presence_cap: words(policy.presence_cap),
            call_cap: words(policy.call_cap),
            archive_after: words(policy.archive_after),
            keep_archives: words(policy.keep_archives),
            max_awake: policy.max_awake.map_or_else(|| Some(NONE.to_owned()), words),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_may_be_days() {
        let spec: PolicySpec =
            serde_json::from_str(r#"{"archiveAfter": "1d", "keepArchives": "1.5d12h"}"#).unwrap();
        let hours = |hours: u64| Some(Duration::from_secs(hours * 3600));
        assert_eq!((spec.overrides().archive_after, spec.overrides().keep_archives), (hours(24), hours(48)));
    }

    #[test]
    fn policy_spec_contains_every_value() {
        let hour = Duration::from_secs(3600);
        let template = Policy { max_awake: Some(hour), ..Policy::default() };
        for policy in [Policy::default(), Policy { idle_timeout: hour, ..template.clone() }] {
            let written = PolicySpec::of(&policy);
            assert_eq!(template.clone().with(&written.overrides()), policy, "{written:?}");
        }
    }
}
