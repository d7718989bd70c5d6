//! Status: what is durably known of how far a workspace has come. Changed by `decide` alone, kept by the driver alone.

use serde::{Deserialize, Serialize};

use crate::{
    time::Timestamp,
    workspace::{Epoch, State},
};

/// Failures in a row from which on a workspace is called failed. It is still tried, slowly and when somebody asks.
pub const FAILED_AFTER: u32 = 5;

/// How far a workspace has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Where it is in the drawing of `decide`.
    pub phase: Phase,
    /// Why, for people.
    pub reason: String,
    /// Since when it is in this phase.
    pub since: Timestamp,
    /// Of the last start that was ordered; 0: none yet.
    pub epoch: Epoch,
    /// How many agents have had write access to its storage: an archive is proven for one value of it.
    pub storage_generation: u64,
    /// Starts that failed and agents that died in a row, since it was last healthy for a while.
    pub failures: u32,
}

/// Where a workspace is in the drawing of `decide`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// It shall start: once nothing of an earlier agent runs, and not before this time.
    Pending {
        /// The end of the pause after a failure.
        not_before: Timestamp,
    },
    /// An agent has been ordered and has not said hello.
    Starting,
    /// Its agent said hello.
    Awake,
    /// Its processes are being ended; its storage stays.
    FallingAsleep,
    /// It has no processes.
    Asleep,
    /// Its processes end, then its storage goes, then its record.
    Deleting,
}

impl Status {
    /// Of a workspace that has just been made.
    pub fn new(now: Timestamp) -> Self {
        Self {
            phase: Phase::Pending { not_before: now },
            reason: "it has just been made".into(),
            since: now,
            epoch: 0,
            storage_generation: 0,
            failures: 0,
        }
    }

    /// The state word.
    pub fn state(&self) -> State {
        match self.phase {
            Phase::Pending { .. } if self.failures >= FAILED_AFTER => State::Failed,
            Phase::Pending { .. } | Phase::Starting => State::Starting,
            Phase::Awake => State::Awake,
            Phase::FallingAsleep => State::FallingAsleep,
            Phase::Asleep => State::Asleep,
            Phase::Deleting => State::Deleting,
        }
    }
}
