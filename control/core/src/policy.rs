//! The time limits of a workspace. A template has a policy, and a workspace may override parts of
//! it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

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
            /// Returns this policy with the workspace's own values applied.
            #[must_use]
            pub fn with(&self, own: &PolicyOverrides) -> Self {
                Self {
                    $($field: own.$field.unwrap_or(self.$field),)*
                    max_awake: own.max_awake.unwrap_or(self.max_awake),
                }
            }
        }
    };
}

policy! {
    /// Idle time after which the workspace falls asleep.
    idle_timeout = 15 * MINUTE;
    /// Time between the warning of users and the sleep; at most half the idle timeout.
    warning = 2 * MINUTE;
    /// Longest time after the last intent for which work (CPU, IO) makes the workspace busy.
    work_cap = 12 * HOUR;
    /// Longest time after the last intent for which presence (a foreground job) makes the workspace
    /// busy.
    presence_cap = HOUR;
    /// Time asleep before the storage is archived and removed.
    archive_after = DAY;
    /// Retention of archives, in observed time.
    keep_archives = 30 * DAY;
}

impl Policy {
    /// Returns the time between the warning and the sleep, limited to half the idle timeout.
    pub fn warned_before(&self) -> Duration {
        self.warning.min(self.idle_timeout / 2)
    }
}
