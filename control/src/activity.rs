//! Activity of a workspace, as its agent last reported it. `agents` makes it from a validated message,
//! and `api` makes the message for clients from it. All code between reads these values.

use std::time::Duration;

use podling_core::{
    observed::{CommandHealth, UseState},
    time::Timestamp,
};
use podling_proto::agent::v1::{ActivityLevel, ActivityState};

/// The last activity report of a workspace's agent, as decisions use it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ReportedActivity {
    pub level: ActivityLevel,
    /// Idle time that the agent has counted.
    pub counted_idle: Duration,
    /// Time of the report by the agent's clock, which may be wrong.
    pub at: Option<Timestamp>,
    /// Evidence, leases, usage, warning and command failure, truncated to their bounds. Only the
    /// command failure affects decisions.
    pub details: ActivityState,
}

impl ReportedActivity {
    /// Returns whether the workspace is in use. An unknown level counts neither as use nor as idle.
    pub fn use_state(&self) -> UseState {
        match self.level.in_use() {
            Some(true) => UseState::Yes,
            Some(false) => UseState::No(self.counted_idle),
            None => UseState::Unknown,
        }
    }

    /// Returns whether the workspace's own command runs.
    pub fn command_health(&self) -> CommandHealth {
        match &self.details.command_failure {
            Some(failure) => CommandHealth::Failing(failure.detail.clone()),
            None => CommandHealth::Good,
        }
    }
}
