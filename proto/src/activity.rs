//! Meaning of the activity level, for the agent that reports it and for all programs that read it.

use crate::agent::v1::ActivityLevel;

impl ActivityLevel {
    /// Returns whether the workspace is in use. No other code decides that. `None` if the level is
    /// not known; the workspace then counts neither as used nor as idle.
    pub fn in_use(self) -> Option<bool> {
        match self {
            Self::Active | Self::Busy => Some(true),
            Self::Idle => Some(false),
            Self::Unspecified => None,
        }
    }

    /// Returns the public name of the level, as JSON, tables and resources show it.
    pub fn word(self) -> Option<&'static str> {
        match self {
            Self::Active => Some("active"),
            Self::Busy => Some("busy"),
            Self::Idle => Some("idle"),
            Self::Unspecified => None,
        }
    }
}
