//! Deliberate mistakes, and a record of the transitions that decisions follow. Each mistake breaks
//! one law of the simulation, which thereby proves that it would notice the mistake.
//!
//! Without the feature `mutants`, `is` is a constant `false` and `record` does nothing.

/// A deliberate mistake of the state machine, named for its effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    not(feature = "mutants"),
    allow(dead_code, reason = "each is looked for in one place, and chosen by tests")
)]
pub enum Mutant {
    /// Storage is removed without an archive.
    RemovesWithoutArchive,
    /// An agent is claimed before it is durable that the storage may hold files.
    ClaimsBeforeStorage,
    /// A start does not increment the storage generation.
    KeepsGeneration,
    /// An archive of any storage generation is accepted as an archive of the present content.
    TrustsOldArchive,
    /// Commit follows although prepare is not confirmed.
    IgnoresPrepare,
    /// The sleep continues although the agent declined the commit.
    IgnoresDecline,
    /// Processes are ended before the agent has saved.
    EndsBeforeReady,
    /// Unknown activity counts as idle.
    SleepsOnUnknown,
    /// The wall clock instead of observed time measures how long a workspace slept.
    TrustsWallClock,
    /// A requested sleep ends the processes without asking the agent.
    SleepsInOnePhase,
    /// The record is removed before the storage.
    RemovesRecordFirst,
    /// The quota admits every workspace.
    AdmitsAll,
    /// An increase of an awake workspace's resources is allocated without quota.
    AllocatesWithoutQuota,
    /// Allocated resources never reach the running agent.
    NeverResizes,
    /// The last workspace in the admission queue is admitted first.
    ServesLastFirst,
    /// The newest archive is removed when the oldest expires.
    ExpiresNewest,
    /// A request to wake that arrives while the workspace falls asleep is ignored.
    LosesWake,
    /// A new agent is started while an earlier one runs.
    StartsSecondAgent,
    /// A start after a failed start reuses the epoch.
    ReusesEpoch,
    /// A restore is taken as done as soon as it begins.
    RestoresInNoTime,
    /// An agent without heartbeats is restarted without waiting for
    /// [`crate::decide::SILENCE_LIMIT`].
    EndsSilentAgent,
    /// The storage is released after its deletion was taken back.
    IgnoresUndelete,
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

    pub const ALL: [Mutant; 22] = [
        Mutant::RemovesWithoutArchive,
        Mutant::ClaimsBeforeStorage,
        Mutant::KeepsGeneration,
        Mutant::TrustsOldArchive,
        Mutant::IgnoresPrepare,
        Mutant::IgnoresDecline,
        Mutant::EndsBeforeReady,
        Mutant::SleepsOnUnknown,
        Mutant::TrustsWallClock,
        Mutant::SleepsInOnePhase,
        Mutant::RemovesRecordFirst,
        Mutant::AdmitsAll,
        Mutant::AllocatesWithoutQuota,
        Mutant::NeverResizes,
        Mutant::ServesLastFirst,
        Mutant::ExpiresNewest,
        Mutant::LosesWake,
        Mutant::StartsSecondAgent,
        Mutant::ReusesEpoch,
        Mutant::RestoresInNoTime,
        Mutant::EndsSilentAgent,
        Mutant::IgnoresUndelete,
    ];

    /// A transition that a decision followed.
    #[derive(Debug, Clone)]
    pub struct FollowedTransition {
        pub from: Phase,
        pub to: Phase,
        /// The reason after the transition.
        pub reason: StateReason,
        /// Whether only the quota reservation or the queue position changed, and the phase did not.
        pub resized: bool,
    }

    thread_local! {
        static CHOSEN: Cell<Option<Mutant>> = const { Cell::new(None) };
        static RECORDED: RefCell<Vec<FollowedTransition>> = const { RefCell::new(Vec::new()) };
    }

    /// Makes the decisions of this thread follow the mutant. `None` restores the correct behaviour.
    pub fn choose(mutant: Option<Mutant>) {
        CHOSEN.set(mutant);
    }

    /// Returns the transitions of this thread's decisions since the last call.
    pub fn take_recorded() -> Vec<FollowedTransition> {
        RECORDED.take()
    }

    pub(crate) fn is(mutant: Mutant) -> bool {
        CHOSEN.get() == Some(mutant)
    }

    pub(crate) fn record(from: &Status, to: &Status) {
        let resized =
            from.phase == to.phase && (from.allocated, from.queued_at) != (to.allocated, to.queued_at);
        let recorded =
            FollowedTransition { from: from.phase, to: to.phase, reason: to.reason.clone(), resized };
        RECORDED.with_borrow_mut(|all| all.push(recorded));
    }
}

#[cfg(not(feature = "mutants"))]
pub(crate) const fn is(_mutant: Mutant) -> bool {
    false
}

#[cfg(not(feature = "mutants"))]
pub(crate) const fn record(_from: &crate::status::Status, _to: &crate::status::Status) {}
