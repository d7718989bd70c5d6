//! The time limits of a workspace. A template has a policy, and a workspace may override parts of
//! it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Passes the fields of a policy to the macro `$then`: text, name and default of each. Every place
/// that has all fields, such as the CRD, is made by it, so that a new field is added here once.
///
/// The field `max_awake` is not among them: it is optional. The texts are those of the CRD.
#[macro_export]
macro_rules! policy_fields {
    ($then:ident) => {
        $then! {
            /// Idle time after which the workspace falls asleep. Default: 15m.
            idle_timeout = 15 * MINUTE;
            /// Time before sleep at which users are warned, at most half the idle timeout. Default: 2m.
            warning = 2 * MINUTE;
            /// Time after the last intent for which work (CPU, IO) keeps the workspace awake. Default: 12h.
            work_cap = 12 * HOUR;
            /// Time after the last intent for which presence (a foreground job) keeps the workspace awake.
            /// Default: 1h.
            presence_cap = HOUR;
            /// Time after its start or the last intent for which a client's call under way, such as a
            /// command that the client follows, keeps the workspace awake. Default: 12h.
            call_cap = 12 * HOUR;
            /// Time asleep after which the storage is archived and removed. Default: 24h.
            archive_after = DAY;
            /// Time for which archives are retained. Default: 30d.
            keep_archives = 30 * DAY;
        }
    };
}

macro_rules! policy {
    ($($(#[doc = $doc:literal])* $field:ident = $default:expr;)*) => {
        /// The policy of a workspace: its template's values, overridden by the workspace's own.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct Policy {
            $($(#[doc = $doc])* pub $field: Duration,)*
            /// Longest time awake, even if the workspace is in use. `None` means no limit.
            pub max_awake: Option<Duration>,
        }

        /// The parts of a policy that a workspace sets itself. `None` leaves a value unchanged.
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub struct PolicyOverrides {
            $(
                #[doc = concat!("See [`Policy::", stringify!($field), "`].")]
                pub $field: Option<Duration>,
            )*
            /// See [`Policy::max_awake`]. `Some(None)` removes a limit.
            pub max_awake: Option<Option<Duration>>,
        }

        impl Default for Policy {
            fn default() -> Self {
                Self { $($field: $default,)* max_awake: None }
            }
        }

        impl Policy {
            /// Names of the fields that are durations: all except `max_awake`.
            pub const DURATIONS: &[&str] = &[$(stringify!($field)),*];

            /// Returns this policy with the workspace's own values applied.
            #[must_use]
            pub fn with(&self, own: &PolicyOverrides) -> Self {
                Self {
                    $($field: own.$field.unwrap_or(self.$field),)*
                    max_awake: own.max_awake.unwrap_or(self.max_awake),
                }
            }
        }

        impl PolicyOverrides {
            /// Reads the fields in [`Policy::DURATIONS`] by their names. Leaves `max_awake` unchanged.
            pub fn read<E>(
                mut duration: impl FnMut(&'static str) -> Result<Option<Duration>, E>,
            ) -> Result<Self, E> {
                Ok(Self { $($field: duration(stringify!($field))?,)* max_awake: None })
            }
        }
    };
}

policy_fields!(policy);

/// A warning that is longer than half of its idle timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be at most {} s, half of the idle timeout of {} s; shorten it or raise the idle timeout",
    .longest.as_secs(), .idle_timeout.as_secs()
)]
pub struct WarningTooLong {
    pub longest: Duration,
    pub idle_timeout: Duration,
}

impl Policy {
    /// Returns the longest warning: half of the idle timeout in whole seconds, and at least 1 s.
    pub fn longest_warning(&self) -> Duration {
        Duration::from_secs((self.idle_timeout.as_secs() / 2).max(1))
    }

    /// Returns this policy with its warning limited to the longest one. A warning that was not
    /// chosen together with the idle timeout, such as a template's, is limited silently.
    #[must_use]
    pub fn with_limited_warning(self) -> Self {
        Self { warning: self.warning.min(self.longest_warning()), ..self }
    }

    /// Returns this policy with the values of a request applied. Fails if the request asks for a
    /// warning longer than the longest one.
    pub fn requested(&self, own: &PolicyOverrides) -> Result<Self, WarningTooLong> {
        let policy = self.with(own);
        let longest = policy.longest_warning();
        match own.warning {
            Some(warning) if warning > longest => {
                Err(WarningTooLong { longest, idle_timeout: policy.idle_timeout })
            }
            _ => Ok(policy.with_limited_warning()),
        }
    }

    /// Returns the time between the warning and the sleep, limited to half the idle timeout.
    pub fn warned_before(&self) -> Duration {
        self.warning.min(self.idle_timeout / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requested_warning_fits_into_the_idle_timeout() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let request = |idle_timeout, warning| {
            let own = PolicyOverrides { idle_timeout, warning, ..PolicyOverrides::default() };
            Policy::default().requested(&own).map(|policy| policy.warning.as_secs())
        };
        assert_eq!(request(None, None), Ok(120));
        assert_eq!(request(seconds(300), seconds(150)), Ok(150));
        assert_eq!(request(seconds(10), None), Ok(5), "the default is limited");
        assert_eq!(request(seconds(1), seconds(1)), Ok(1), "no time is shorter");
        let refused = request(seconds(300), seconds(240)).expect_err("too long").to_string();
        assert!(refused.contains("at most 150 s") && refused.contains("300 s"), "{refused}");
        assert!(request(None, seconds(451)).is_err(), "half of the default of 15 minutes");
    }
}
