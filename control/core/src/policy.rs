//! Policy: how long what may last. A template has one; a workspace may override parts of it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The whole policy of a workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Counted idle time before sleep.
    pub idle_timeout: Duration,
    /// How long work holds after the last intent.
    pub work_cap: Duration,
    /// How long presence holds after the last intent.
    pub presence_cap: Duration,
}

/// What a workspace sets itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PolicyOverrides {
    /// See [`Policy::idle_timeout`].
    pub idle_timeout: Option<Duration>,
    /// See [`Policy::work_cap`].
    pub work_cap: Option<Duration>,
    /// See [`Policy::presence_cap`].
    pub presence_cap: Option<Duration>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(15 * 60),
            work_cap: Duration::from_secs(12 * 60 * 60),
            presence_cap: Duration::from_secs(60 * 60),
        }
    }
}

impl Policy {
    /// This policy with a workspace's own values in it.
    #[must_use]
    pub fn with(&self, own: &PolicyOverrides) -> Self {
        Self {
            idle_timeout: own.idle_timeout.unwrap_or(self.idle_timeout),
            work_cap: own.work_cap.unwrap_or(self.work_cap),
            presence_cap: own.presence_cap.unwrap_or(self.presence_cap),
        }
    }
}
