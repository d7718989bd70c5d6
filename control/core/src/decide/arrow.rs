//! The arrows of the drawing: each one function, which says where the workspace goes if the arrow applies.

mod serving;
mod sleeping;
mod storage;

use super::pause;
use crate::{
    observed::Observed,
    status::{Phase, Status, Task},
    time::Timestamp,
    workspace::{Spec, Wanted},
};

/// What the arrows look at.
#[derive(Clone, Copy)]
struct Seen<'a> {
    spec: &'a Spec,
    status: &'a Status,
    observed: &'a Observed,
    now: Timestamp,
}

/// The first arrow that applies.
pub(super) fn follow(spec: &Spec, status: &Status, observed: &Observed, now: Timestamp) -> Option<Status> {
    let seen = Seen { spec, status, observed, now };
    let first = storage::noted(seen).or_else(|| seen.discard());
    if first.is_some() {
        return first;
    }
    match status.phase {
        Phase::Queued => {
            serving::end_now(seen).or_else(|| serving::lined_up(seen)).or_else(|| serving::admit(seen))
        }
        Phase::Pending { not_before } => serving::end_now(seen)
            .or_else(|| serving::resized(seen))
            .or_else(|| serving::start(seen, not_before)),
        Phase::Starting => serving::end_now(seen)
            .or_else(|| serving::resized(seen))
            .or_else(|| serving::start_failed(seen))
            .or_else(|| serving::hello(seen)),
        Phase::Awake => serving::worn_out(seen)
            .or_else(|| serving::died(seen))
            .or_else(|| sleeping::end_now(seen))
            .or_else(|| serving::silent(seen))
            .or_else(|| sleeping::fall_asleep(seen))
            .or_else(|| serving::resized(seen))
            .or_else(|| serving::healthy(seen)),
        Phase::Preparing { urgency, declined } => serving::worn_out(seen)
            .or_else(|| serving::died(seen))
            .or_else(|| sleeping::end_now(seen))
            .or_else(|| sleeping::reprieve(seen, urgency, declined))
            .or_else(|| sleeping::prepared(seen)),
        Phase::Committing => {
            sleeping::ready(seen).or_else(|| sleeping::give_up(seen)).or_else(|| sleeping::declined(seen))
        }
        Phase::FallingAsleep => sleeping::rest(seen),
        Phase::Asleep => {
            sleeping::wake(seen).or_else(|| storage::let_go(seen)).or_else(|| storage::archive_due(seen))
        }
        Phase::Opening(task) => match task {
            Task::Archive => sleeping::wake(seen),
            Task::Restore => None,
        }
        .or_else(|| storage::put_off(seen, task))
        .or_else(|| storage::opened(seen, task)),
        Phase::Working(Task::Archive) => sleeping::wake(seen)
            .or_else(|| storage::kept(seen))
            .or_else(|| storage::put_off(seen, Task::Archive)),
        Phase::Working(Task::Restore) => {
            storage::restored(seen).or_else(|| storage::put_off(seen, Task::Restore))
        }
        Phase::Archived => storage::nothing_left(seen).or_else(|| storage::restore(seen)),
        Phase::Deleting => None,
    }
}

impl Seen<'_> {
    /// Somebody wants it gone with all that it holds.
    fn discard(self) -> Option<Status> {
        (self.spec.wanted == Wanted::Discarded && self.status.phase != Phase::Deleting)
            .then(|| self.to(Phase::Deleting, "somebody wants it gone, with its files and archives"))
    }

    fn connected(self) -> bool {
        self.observed.connected == Some(self.status.epoch)
    }

    fn lives(self) -> bool {
        self.observed.processes.lives(self.status.epoch)
    }

    /// Its present agent has told of use.
    fn was_used(self) -> bool {
        self.observed.used_by == Some(self.status.epoch)
    }

    /// Somebody asked for it since it fell asleep last.
    fn is_called(self) -> bool {
        self.spec.wanted == Wanted::Awake && self.spec.asked > self.status.answered && !self.observed.standby
    }

    fn to(self, phase: Phase, reason: impl Into<String>) -> Status {
        Status { phase, reason: reason.into(), since: self.now, waits: None, ..self.status.clone() }
    }

    /// Into the pause that `counted` failures ask for, with one failure more.
    fn fail(self, why: String, counted: u32) -> Status {
        let mut next = self.to(Phase::Pending { not_before: self.now.plus(pause::after(counted)) }, why);
        next.failures = next.failures.saturating_add(1);
        next
    }
}
