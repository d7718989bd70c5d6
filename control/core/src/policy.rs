//! Policy: the time limits of a workspace. A template has a policy; a workspace may override parts
//! of it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

macro_rules! policy {
    ($($(#[doc = $doc:literal])* $field:ident = $default:expr;)*) => {
        /// The effective policy of a workspace.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct Policy {
            $($(#[doc = $doc])* pub $field: Duration,)*
            /// Longest time awake, in use or not. `None`: unlimited.
            pub max_awake: Option<Duration>,
        }

        /// Values that a workspace sets itself.
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
            /// Returns this policy with a workspace's own values applied.
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
    /// Idle time that counts before the workspace falls asleep.
    idle_timeout = 15 * MINUTE;
    /// How long before that users are warned; at most half the idle timeout.
    warning = 2 * MINUTE;
    /// How long work (CPU, IO, a busy kernel) counts after the last intent.
    work_cap = 12 * HOUR;
    /// How long presence (a foreground job, an open page) counts after the last intent.
    presence_cap = HOUR;
    /// Time asleep before the storage is archived and removed.
    archive_after = DAY;
    /// How long archives are retained.
    keep_archives = 30 * DAY;
}

impl Policy {
    /// How long before sleep users are warned, within its bound.
    pub fn warned_before(&self) -> Duration {
        self.warning.min(self.idle_timeout / 2)
    }
}
