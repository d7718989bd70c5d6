//! Deliberate mistakes, each of which breaks one law, and a record of the transitions taken. With
//! them the simulation proves that it would notice such a mistake.
//!
//! Without the feature `mutants`, `is` is a constant `false` and `took` does nothing.

/// A mistake that the state machine could make, named for what it does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    not(feature = "mutants"),
    allow(dead_code, reason = "each is looked for in one place, and chosen by tests")
)]
pub enum Mutant {
    /// Storage is removed without an archive.
    RemovesWithoutArchive,
    /// A start keeps the storage generation.
    KeepsGeneration,
    /// Any archive counts as an archive of what the storage holds.
    TrustsOldArchive,
    /// An agent that was asked to prepare counts as prepared.
    IgnoresPrepare,
    /// A declined action is carried out all the same.
    IgnoresRefusal,
    /// Processes are ended before the agent has saved.
    EndsBeforeReady,
    /// Unknown activity counts as idle.
    SleepsOnUnknown,
    /// The wall clock measures how long a workspace slept.
    TrustsWallClock,
    /// A requested sleep takes one phase instead of two.
    SleepsInOnePhase,
    /// The record is removed before the storage.
    ForgetsFirst,
    /// The quota admits every workspace.
    AdmitsAll,
    /// A resize of an awake workspace is allocated without quota.
    GrowsAtOnce,
    /// Allocated resources never reach the running agent.
    NeverResizes,
    /// The last workspace in the admission queue is admitted first.
    ServesLastFirst,
    /// The newest archive is removed when the oldest expires.
    ExpiresNewest,
    /// A request to wake that arrives while the workspace falls asleep is lost.
    LosesWake,
    /// A new agent is started beside an old one that runs.
    StartsBeside,
    /// A start after a failed start reuses the epoch.
    ReusesEpoch,
    /// A restore counts as done once it begins.
    RestoresInNoTime,
    /// An agent that sends no heartbeat is ended at once.
    EndsUnheard,
}

#[cfg(feature = "mutants")]
pub use chosen::*;

#[cfg(feature = "mutants")]
mod chosen {
    use std::cell::{Cell, RefCell};

    use super::Mutant;
    use crate::{
        reason::StateReason,
        status::{Phase, Status},
    };

    /// Every mutant, for tests that try each.
    pub const ALL: [Mutant; 20] = [
        Mutant::RemovesWithoutArchive,
        Mutant::KeepsGeneration,
        Mutant::TrustsOldArchive,
        Mutant::IgnoresPrepare,
        Mutant::IgnoresRefusal,
        Mutant::EndsBeforeReady,
        Mutant::SleepsOnUnknown,
        Mutant::TrustsWallClock,
        Mutant::SleepsInOnePhase,
        Mutant::ForgetsFirst,
        Mutant::AdmitsAll,
        Mutant::GrowsAtOnce,
        Mutant::NeverResizes,
        Mutant::ServesLastFirst,
        Mutant::ExpiresNewest,
        Mutant::LosesWake,
        Mutant::StartsBeside,
        Mutant::ReusesEpoch,
        Mutant::RestoresInNoTime,
        Mutant::EndsUnheard,
    ];

    /// A transition that a decision followed.
    #[derive(Debug, Clone)]
    pub struct FollowedTransition {
        pub from: Phase,
        pub to: Phase,
        /// The reason after the transition.
        pub reason: StateReason,
        /// Only the quota reservation changed.
        pub resized: bool,
    }

    thread_local! {
        static CHOSEN: Cell<Option<Mutant>> = const { Cell::new(None) };
        static TAKEN: RefCell<Vec<FollowedTransition>> = const { RefCell::new(Vec::new()) };
    }

    /// Makes decisions of this thread follow the mutant; `None` restores the correct behaviour.
    pub fn choose(mutant: Option<Mutant>) {
        CHOSEN.set(mutant);
    }

    /// Returns the transitions of this thread's decisions since the last call.
    pub fn taken() -> Vec<FollowedTransition> {
        TAKEN.take()
    }

    pub(crate) fn is(mutant: Mutant) -> bool {
        CHOSEN.get() == Some(mutant)
    }

    pub(crate) fn took(from: &Status, to: &Status) {
        let resized =
            from.phase == to.phase && (from.allocated, from.queued_at) != (to.allocated, to.queued_at);
        let taken = FollowedTransition { from: from.phase, to: to.phase, reason: to.reason.clone(), resized };
        TAKEN.with_borrow_mut(|all| all.push(taken));
    }
}

#[cfg(not(feature = "mutants"))]
pub(crate) const fn is(_mutant: Mutant) -> bool {
    false
}

#[cfg(not(feature = "mutants"))]
pub(crate) const fn took(_from: &crate::status::Status, _to: &crate::status::Status) {}
