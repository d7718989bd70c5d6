//! What becomes of the storage of a workspace that sleeps: archived, proven, let go, and filled again.

use super::{Seen, serving};
use crate::{
    decide::{Action, pause},
    mutant::{self, Mutant},
    observed::Processes,
    status::{Phase, Status, Task, Upkeep},
    workspace::Wanted,
};

/// Facts that hold in every phase: an archive was proven, one is gone, the storage is gone.
pub(super) fn noted(seen: Seen<'_>) -> Option<Status> {
    let (status, observed) = (seen.status, seen.observed);
    if let Some(archive) = &observed.archived
        && !observed.expired.contains(&archive.generation)
        && status.archives.iter().all(|known| known.generation != archive.generation)
    {
        let mut next = status.clone();
        next.archives.push((**archive).clone());
        return Some(next);
    }
    if status.archives.iter().any(|archive| observed.expired.contains(&archive.generation)) {
        let mut next = status.clone();
        next.archives.retain(|archive| !observed.expired.contains(&archive.generation));
        return Some(next);
    }
    let gone = observed.removed && status.storage && status.phase == Phase::Archived;
    gone.then(|| Status { storage: false, since: seen.now, reason: said_archived(seen), ..status.clone() })
}

fn said_archived(seen: Seen<'_>) -> String {
    match seen.status.archive() {
        Some(archive) => format!("only its archive {} is left", archive.key.0),
        None => seen.status.reason.clone(),
    }
}

/// Its archive holds what the storage holds: that may go. One that never had storage goes this way too when it is deleted.
pub(super) fn let_go(seen: Seen<'_>) -> Option<Status> {
    if seen.observed.standby {
        return None;
    }
    let archived = seen.status.archive().is_some() || mutant::is(Mutant::RemovesWithoutArchive);
    match (seen.status.storage, archived) {
        (true, true) => Some(seen.to(Phase::Archived, "its archive is proven; its storage is removed")),
        (false, _) if seen.spec.wanted == Wanted::Deleted => {
            Some(seen.to(Phase::Archived, "somebody deleted it"))
        }
        _ => None,
    }
}

/// It has slept long enough, or is to be deleted.
pub(super) fn archive_due(seen: Seen<'_>) -> Option<Status> {
    let slept = seen.observed.witnessed.saturating_sub(seen.status.rested);
    let slept = match mutant::is(Mutant::TrustsWallClock) {
        true => seen.now.since(seen.status.since),
        false => slept,
    };
    let due = slept >= seen.spec.policy.archive_after || seen.spec.wanted == Wanted::Deleted;
    (due && seen.status.storage && !seen.observed.crowded && may_open(seen)).then(|| {
        let why = match seen.spec.wanted {
            Wanted::Deleted => "somebody deleted it: it is archived first",
            _ => "it has slept for long: it is archived",
        };
        opening(seen, Task::Archive, why)
    })
}

/// Somebody asks for it, and only its archive is left.
pub(super) fn restore(seen: Seen<'_>) -> Option<Status> {
    let source = seen.status.archive().map(|archive| &archive.key).or(seen.spec.source.as_ref())?;
    (seen.is_called() && !seen.status.storage && may_open(seen)).then(|| {
        let mut next = opening(seen, Task::Restore, &format!("it is restored from {}", source.0));
        // Half a workspace may be there from now on; what is in the archive is not touched by that.
        next.storage = true;
        next
    })
}

fn may_open(seen: Seen<'_>) -> bool {
    !seen.observed.standby
        && seen.observed.processes == Processes::None
        && !pause::waits(seen.status.upkeep.not_before, seen.now)
}

/// An agent that does not write as the user does: the generation stays.
fn opening(seen: Seen<'_>, task: Task, why: &str) -> Status {
    let mut next = seen.to(Phase::Opening(task), why);
    next.epoch += 1;
    next
}

/// Its agent said hello.
pub(super) fn opened(seen: Seen<'_>, task: Task) -> Option<Status> {
    (seen.connected() && seen.lives()).then(|| seen.to(Phase::Working(task), seen.status.reason.clone()))
}

/// It is archived.
pub(super) fn kept(seen: Seen<'_>) -> Option<Status> {
    let archive = seen.status.archive()?;
    let mut next = seen.to(Phase::Asleep, format!("it is archived as {}", archive.key.0));
    next.upkeep = Upkeep::default();
    Some(next)
}

/// Its storage holds what the archive holds.
pub(super) fn restored(seen: Seen<'_>) -> Option<Status> {
    let done = seen.observed.restored == Some(seen.status.epoch) || mutant::is(Mutant::RestoresInNoTime);
    done.then(|| {
        let mut next = seen.to(Phase::Queued, "it was restored from its archive");
        next.queued = Some(seen.observed.witnessed);
        next.storage_generation += 1;
        next.answered = seen.spec.asked;
        next.upkeep = Upkeep::default();
        next
    })
}

/// It did not work, or is not wanted any more: the storage stays as it is (or, half restored, goes) until the next try.
pub(super) fn put_off(seen: Seen<'_>, task: Task) -> Option<Status> {
    let home = match task {
        Task::Archive => Phase::Asleep,
        Task::Restore => Phase::Archived,
    };
    if seen.observed.standby {
        return Some(seen.to(home, "the control plane is going down"));
    }
    if task == Task::Restore && seen.spec.wanted != Wanted::Awake {
        return Some(seen.to(home, "it is not wanted any more"));
    }
    let why = why_not_done(seen, task)?;
    let mut next = seen.to(home, why);
    next.upkeep.failures = next.upkeep.failures.saturating_add(1);
    next.upkeep.not_before = seen.now.plus(pause::after(next.upkeep.failures));
    Some(next)
}

fn why_not_done(seen: Seen<'_>, task: Task) -> Option<String> {
    let working = matches!(seen.status.phase, Phase::Working(_));
    let action = match task {
        Task::Archive => Action::Archive(seen.status.epoch),
        Task::Restore => Action::Restore(seen.status.epoch),
    };
    let what = match task {
        Task::Archive => "it could not be archived, and its storage is kept",
        Task::Restore => "it could not be restored",
    };
    let failed = seen.observed.trouble.as_ref().filter(|trouble| trouble.action == action);
    let why = match failed {
        Some(trouble) => trouble.failure.words().to_owned(),
        None if working && (seen.lives() && seen.connected()) => return None,
        None if working && seen.observed.processes == Processes::Unseen => return None,
        None if working => "its agent was lost".to_owned(),
        None => serving::why_not_started(seen)?,
    };
    Some(format!("{what}: {why}"))
}

/// Neither storage nor archives, and nothing it could begin with.
pub(super) fn nothing_left(seen: Seen<'_>) -> Option<Status> {
    let fresh = seen.spec.source.is_some() && seen.status.storage_generation == 0;
    let wanted = fresh && !seen.spec.wanted.is_gone();
    (!seen.status.storage && seen.status.archives.is_empty() && !wanted)
        .then(|| seen.to(Phase::Deleting, "the time of its archives is over, and nothing of it is left"))
}
