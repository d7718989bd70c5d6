//! Switches that break one law each, and the arrows that were taken: what the simulation needs to prove that it would notice.
//!
//! Without the feature `mutants` nothing of it is compiled in: `is` is a constant `false` and `took` nothing at all.

/// A mistake that could be made here. Each is named for what it does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    not(feature = "mutants"),
    allow(dead_code, reason = "each is looked for in one place, and chosen by tests")
)]
pub enum Mutant {
    /// Storage goes without an archive.
    RemovesWithoutArchive,
    /// A start does not change the storage's generation.
    KeepsGeneration,
    /// Any archive counts as one of what the storage holds.
    TrustsOldArchive,
    /// Who was asked to shut its door counts as having done it.
    IgnoresDoor,
    /// What an agent declines happens all the same.
    IgnoresRefusal,
    /// Processes are ended before their agent has saved everything.
    EndsBeforeReady,
    /// Who is not known to be used counts as not used.
    SleepsOnUnknown,
    /// The wall clock says how long somebody slept.
    TrustsWallClock,
    /// Sleep that somebody asks for has one phase.
    SleepsInOnePhase,
    /// The record goes before the storage.
    ForgetsFirst,
    /// There is always room.
    GivesRoomToAll,
    /// Who is awake already is given more at once.
    GrowsAtOnce,
    /// What a running one was given it never gets.
    NeverResizes,
    /// Who came last is next.
    ServesLastFirst,
    /// The newest archive goes when the oldest is too old.
    ExpiresNewest,
    /// A wish to wake that comes while it falls asleep is lost.
    LosesWake,
    /// A new agent is started beside an old one.
    StartsBeside,
    /// A start after a failed one has the same epoch.
    ReusesEpoch,
    /// A restore counts as done when it begins.
    RestoresInNoTime,
    /// An agent that cannot be heard is ended at once.
    EndsUnheard,
}

#[cfg(feature = "mutants")]
pub use chosen::*;

#[cfg(feature = "mutants")]
mod chosen {
    use std::cell::{Cell, RefCell};

    use super::Mutant;
    use crate::status::{Phase, Status};

    /// All of them.
    pub const ALL: [Mutant; 20] = [
        Mutant::RemovesWithoutArchive,
        Mutant::KeepsGeneration,
        Mutant::TrustsOldArchive,
        Mutant::IgnoresDoor,
        Mutant::IgnoresRefusal,
        Mutant::EndsBeforeReady,
        Mutant::SleepsOnUnknown,
        Mutant::TrustsWallClock,
        Mutant::SleepsInOnePhase,
        Mutant::ForgetsFirst,
        Mutant::GivesRoomToAll,
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

    /// An arrow that a decision followed.
    #[derive(Debug, Clone)]
    pub struct Taken {
        /// Where it began.
        pub from: Phase,
        /// Where it led.
        pub to: Phase,
        /// The reason at its end.
        pub reason: String,
        /// It was about room, and nothing else.
        pub resized: bool,
    }

    thread_local! {
        static CHOSEN: Cell<Option<Mutant>> = const { Cell::new(None) };
        static TAKEN: RefCell<Vec<Taken>> = const { RefCell::new(Vec::new()) };
    }

    /// From now on this thread decides as this mutant does; `None`: as it should.
    pub fn choose(mutant: Option<Mutant>) {
        CHOSEN.set(mutant);
    }

    /// The arrows that this thread's decisions followed since they were asked for last.
    pub fn taken() -> Vec<Taken> {
        TAKEN.take()
    }

    pub(crate) fn is(mutant: Mutant) -> bool {
        CHOSEN.get() == Some(mutant)
    }

    pub(crate) fn took(from: &Status, to: &Status) {
        let resized = from.phase == to.phase && (from.given, from.queued) != (to.given, to.queued);
        let taken = Taken { from: from.phase, to: to.phase, reason: to.reason.clone(), resized };
        TAKEN.with_borrow_mut(|all| all.push(taken));
    }
}

#[cfg(not(feature = "mutants"))]
pub(crate) const fn is(_mutant: Mutant) -> bool {
    false
}

#[cfg(not(feature = "mutants"))]
pub(crate) const fn took(_from: &crate::status::Status, _to: &crate::status::Status) {}
