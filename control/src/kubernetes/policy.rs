//! How long what may last.

use std::time::Duration;

use kube::KubeSchema;
use podling_core::policy::{Policy, PolicyOverrides};
use serde::{Deserialize, Serialize};

use crate::quantity::{duration, duration_words};

macro_rules! policy {
    ($($(#[doc = $doc:literal])* $field:ident;)*) => {
        /// How long what may last: hours, minutes and seconds ("36h", "1h30m", "90s"), from 1 s to a year. What is absent is the
        /// template's, or else Podling's own.
        #[derive(KubeSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub struct PolicySpec {
            $(
                $(#[doc = $doc])*
                #[serde(default, skip_serializing_if = "Option::is_none")]
                #[schemars(length(max = 16), regex(pattern = "^([0-9]+h)?([0-9]+m)?([0-9]+s)?$"))]
                #[x_kube(
                    validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('8784h')")
                        .message("a time from 1s to 8784h (a year)")
                )]
                pub $field: Option<String>,
            )*
            /// Longest time awake, used or not; "none": no end, which is usual.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            #[schemars(length(max = 16), regex(pattern = "^(none|([0-9]+h)?([0-9]+m)?([0-9]+s)?)$"))]
            #[x_kube(
                validation = Rule::new("self == 'none' || duration(self) >= duration('1s') && duration(self) <= duration('8784h')")
                    .message("a time from 1s to 8784h (a year), or none")
            )]
            pub max_awake: Option<String>,
        }
    };
}

policy! {
    /// Counted idle time before sleep; 15 minutes.
    idle_timeout;
    /// How long before that people are warned, at most half the idle timeout; 2 minutes.
    warning;
    /// How long work holds after the last intent; 12 hours.
    work_cap;
    /// How long presence holds after the last intent; an hour.
    presence_cap;
    /// Time asleep before the storage is archived and let go; a day.
    archive_after;
    /// How long archives are kept; 30 days.
    keep_archives;
}

/// What has no end. (Nothing at all would be the template's.)
const NONE: &str = "none";

impl PolicySpec {
    /// What it says, and says nothing about. What cannot be read (the API server lets none of it in) is not said.
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

    /// All of this policy: whatever it is merged into says nothing else afterwards.
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
    fn a_policy_is_written_whole() {
        let hour = Duration::from_secs(3600);
        let template = Policy { max_awake: Some(hour), ..Policy::default() };
        for policy in [Policy::default(), Policy { idle_timeout: hour, ..template.clone() }] {
            let written = PolicySpec::of(&policy);
            assert_eq!(template.clone().with(&written.overrides()), policy, "{written:?}");
        }
    }
}
