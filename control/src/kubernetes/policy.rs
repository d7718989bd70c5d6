//! Timeouts and caps in the resources.

use std::time::Duration;

use kube::KubeSchema;
use podling_core::policy::{Policy, PolicyOverrides};
use serde::{Deserialize, Serialize};

use crate::quantity::{duration, duration_words};

macro_rules! policy {
    ($($(#[doc = $doc:literal])* $field:ident;)*) => {
        /// Timeouts and caps in hours, minutes and seconds ("36h", "1h30m", "90s"), from 1 s to a
        /// year. Absent values come from the template, or else from Podling's defaults.
        #[derive(KubeSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub struct PolicySpec {
            $(
                $(#[doc = $doc])*
                #[serde(default, skip_serializing_if = "Option::is_none")]
                #[schemars(length(max = 16), regex(pattern = "^([0-9]+h)?([0-9]+m)?([0-9]+s)?$"))]
                #[x_kube(
                    validation = Rule::new(
                        "duration(self) >= duration('1s') && duration(self) <= duration('8784h')"
                    )
                        .message("a time from 1s to 8784h (a year)")
                )]
                pub $field: Option<String>,
            )*
            /// Longest time awake, in use or not; "none" means no limit. Default: none.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            #[schemars(length(max = 16), regex(pattern = "^(none|([0-9]+h)?([0-9]+m)?([0-9]+s)?)$"))]
            #[x_kube(
                validation = Rule::new(
                    "self == 'none' || \
                     duration(self) >= duration('1s') && duration(self) <= duration('8784h')"
                )
                    .message("a time from 1s to 8784h (a year), or none")
            )]
            pub max_awake: Option<String>,
        }
    };
}

policy! {
    /// Counted idle time before sleep. Default: 15m.
    idle_timeout;
    /// How long before sleep users are warned, at most half the idle timeout. Default: 2m.
    warning;
    /// How long work keeps a workspace awake after the last intent. Default: 12h.
    work_cap;
    /// How long presence keeps a workspace awake after the last intent. Default: 1h.
    presence_cap;
    /// Time asleep before the storage is archived and released. Default: 24h.
    archive_after;
    /// How long archives are retained. Default: 30 days.
    keep_archives;
}

/// The value for "no limit". An absent value means the template's.
const NONE: &str = "none";

impl PolicySpec {
    /// The values that the spec sets. Values that cannot be parsed, which the CRD rejects, count as
    /// absent.
    pub fn overrides(&self) -> PolicyOverrides {
        let time = |text: &Option<String>| text.as_deref().and_then(duration);
        PolicyOverrides {
            idle_timeout: time(&self.idle_timeout),
            warning: time(&self.warning),
            work_cap: time(&self.work_cap),
            presence_cap: time(&self.presence_cap),
            archive_after: time(&self.archive_after),
            keep_archives: time(&self.keep_archives),
            max_awake: match self.max_awake.as_deref() {
                Some(NONE) => Some(None),
                _ => time(&self.max_awake).map(Some),
            },
        }
    }

    /// All values of the policy, so that merging it into another policy replaces every value.
    pub fn of(policy: &Policy) -> Self {
        let words = |time: Duration| Some(duration_words(time));
        Self {
            idle_timeout: words(policy.idle_timeout),
            warning: words(policy.warning),
            work_cap: words(policy.work_cap),
            presence_cap: words(policy.presence_cap),
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
    fn policy_spec_contains_every_value() {
        let hour = Duration::from_secs(3600);
        let template = Policy { max_awake: Some(hour), ..Policy::default() };
        for policy in [Policy::default(), Policy { idle_timeout: hour, ..template.clone() }] {
            let written = PolicySpec::of(&policy);
            assert_eq!(template.clone().with(&written.overrides()), policy, "{written:?}");
        }
    }
}
