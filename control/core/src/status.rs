//! Status: what is durably known of how far a workspace has come. Changed by `decide` alone, kept by the driver alone.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    archive::Archive,
    mutant::{self, Mutant},
    time::Timestamp,
    workspace::{Epoch, Resources, State},
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
    /// What had been witnessed ([`crate::observed::Observed::witnessed`]) when it woke last.
    #[serde(default)]
    pub woken: Duration,
    /// What had been witnessed when somebody came for it last.
    #[serde(default)]
    pub called: Duration,
    /// What had been witnessed when it fell asleep last.
    #[serde(default)]
    pub rested: Duration,
    /// What had been witnessed when it joined the line for room: its place there. `None`: it does not wait for any.
    #[serde(default)]
    pub queued: Option<Duration>,
    /// What it was given of its owner's share, from the moment there is room until it rests. (Older records do not say it.)
    #[serde(default)]
    pub given: Option<Resources>,
    /// Of the last start that was ordered; 0: none yet.
    pub epoch: Epoch,
    /// How many agents have had write access to its storage: an archive is proven for one value of it.
    pub storage_generation: u64,
    /// There may be storage.
    #[serde(default = "yes")]
    pub storage: bool,
    /// Starts that failed and agents that died in a row, since it was last healthy for a while.
    pub failures: u32,
    /// The request for sleep or waking ([`crate::workspace::Spec::asked`]) that it has answered.
    #[serde(default)]
    pub answered: u64,
    /// Archives that are kept, oldest first.
    #[serde(default)]
    pub archives: Vec<Archive>,
    /// How its archiving, or its way back from the archive, fares.
    #[serde(default)]
    pub upkeep: Upkeep,
    /// What the start or the resize that was ordered waits for.
    #[serde(default)]
    pub waits: Option<Waits>,
}

/// What a start or a resize waits for: it goes on by itself when that comes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waits {
    /// For people: "no machine has room for it: …".
    pub why: String,
    /// For room that others have taken.
    pub for_room: bool,
}

/// Tries at archiving or restoring that failed in a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upkeep {
    /// How many.
    pub failures: u32,
    /// The end of the pause after the last.
    pub not_before: Timestamp,
}

/// Where a workspace is in the drawing of `decide`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// It shall start, and waits for room.
    Queued,
    /// There is room for it. It shall start once nothing of an earlier agent runs, and not before this time.
    Pending {
        /// The end of the pause after a failure.
        not_before: Timestamp,
    },
    /// An agent has been ordered and has not said hello.
    Starting,
    /// Its agent said hello.
    Awake,
    /// Its agent is asked whether it may sleep, and lets nothing new begin.
    Preparing {
        /// Why it is to sleep, and with that what speaks against it.
        urgency: Urgency,
        /// Refusals before, so that a new one is known from an old one.
        declined: u32,
    },
    /// Its agent ends and saves everything. There is no way back.
    Committing,
    /// Its processes are being ended; its storage stays.
    FallingAsleep,
    /// It has no processes.
    Asleep,
    /// An agent that only sees to its storage has been ordered and has not said hello.
    Opening(Task),
    /// That agent does it.
    Working(Task),
    /// Its storage goes, then only its archive is left.
    Archived,
    /// Its processes end, then its storage and its archives go, then its record.
    Deleting,
}

/// Why a workspace is to sleep, and with that for which reasons its agent may decline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Urgency {
    /// It was idle for its whole timeout: declined when it is used, or was idle for less than that.
    Idle,
    /// Somebody asks for it: declined when it is used.
    Asked,
    /// Somebody insists, or it has been awake for as long as it may: never declined.
    Forced,
}

/// What is done to the storage of a workspace that has no processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// It is read into an archive, and that is proven.
    Archive,
    /// It is filled from an archive.
    Restore,
}

impl Phase {
    /// Whether it takes its share of what there is room for.
    pub fn takes_room(self) -> bool {
        match self {
            Self::Pending { .. }
            | Self::Starting
            | Self::Awake
            | Self::Preparing { .. }
            | Self::Committing
            | Self::FallingAsleep => true,
            Self::Queued | Self::Asleep | Self::Archived | Self::Deleting => false,
            // They are none of their owner's doing, and are bounded by themselves.
            Self::Opening(_) | Self::Working(_) => false,
        }
    }
}

impl Status {
    /// Of a workspace that has just been made.
    pub fn new(now: Timestamp) -> Self {
        Self {
            phase: Phase::Queued,
            reason: "it has just been made".into(),
            since: now,
            woken: Duration::ZERO,
            called: Duration::ZERO,
            rested: Duration::ZERO,
            queued: None,
            given: None,
            epoch: 0,
            storage_generation: 0,
            storage: false,
            failures: 0,
            answered: 0,
            archives: Vec::new(),
            upkeep: Upkeep::default(),
            waits: None,
        }
    }

    /// Of one that has just been made and begins with what an archive holds.
    pub fn from_archive(now: Timestamp) -> Self {
        Self { phase: Phase::Archived, ..Self::new(now) }
    }

    /// The archive that holds what the storage holds now.
    pub fn archive(&self) -> Option<&Archive> {
        let trusted = |archive: &&Archive| {
            archive.generation == self.storage_generation || mutant::is(Mutant::TrustsOldArchive)
        };
        self.archives.iter().rev().find(trusted)
    }

    /// The state word.
    pub fn state(&self) -> State {
        match self.phase {
            Phase::Queued => State::Queued,
            Phase::Pending { .. } if self.failures >= FAILED_AFTER => State::Failed,
            Phase::Starting if self.waits.as_ref().is_some_and(|waits| waits.for_room) => State::Queued,
            Phase::Pending { .. } | Phase::Starting => State::Starting,
            Phase::Opening(Task::Restore) | Phase::Working(Task::Restore) => State::Starting,
            Phase::Awake => State::Awake,
            Phase::Preparing { .. } | Phase::Committing | Phase::FallingAsleep => State::FallingAsleep,
            Phase::Asleep => State::Asleep,
            Phase::Opening(Task::Archive) | Phase::Working(Task::Archive) => State::Archiving,
            Phase::Archived if self.storage => State::Archiving,
            Phase::Archived => State::Archived,
            Phase::Deleting => State::Deleting,
        }
    }
}

fn yes() -> bool {
    true
}
