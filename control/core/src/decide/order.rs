//! What a phase asks for.

use super::{Action, MAX_ARCHIVES};
use crate::{
    archive::Archive,
    mutant::{self, Mutant},
    observed::{Observed, Processes, Trouble},
    status::{Phase, Status, Task},
    workspace::{Spec, Wanted},
};

/// The order, if there is anything to do.
pub(super) fn of(spec: &Spec, status: &Status, observed: &Observed) -> Option<Action> {
    let epoch = status.epoch;
    let connected = observed.connected == Some(epoch);
    match (status.phase, &observed.processes) {
        (_, Processes::Unseen) => None,
        (Phase::Awake, _) if connected && observed.door.may_be_shut() == Some(epoch) => {
            Some(Action::Cancel(epoch))
        }
        (Phase::Awake, _) => expire(spec, status, observed).or_else(|| resize(status, observed)),
        (Phase::Preparing { urgency, .. }, _) if connected => Some(Action::Prepare { epoch, urgency }),
        (Phase::Committing, _) if connected => Some(Action::Commit(epoch)),
        (Phase::Working(Task::Archive), _) if connected => Some(Action::Archive(epoch)),
        (Phase::Working(Task::Restore), _) if connected => Some(Action::Restore(epoch)),
        (Phase::Preparing { .. } | Phase::Committing | Phase::Working(_), _) => None,
        (Phase::Starting | Phase::Opening(_), Processes::None) => Some(Action::Start(epoch)),
        (Phase::Starting, Processes::Some(agents))
            if mutant::is(Mutant::StartsBeside) && !agents.contains(&epoch) =>
        {
            Some(Action::Start(epoch))
        }
        (Phase::Starting | Phase::Opening(_), Processes::Some(_)) => None,
        (_, Processes::Some(_)) => Some(Action::Stop),
        (Phase::Deleting, Processes::None) if !observed.removed && !mutant::is(Mutant::ForgetsFirst) => {
            Some(Action::Remove)
        }
        (Phase::Deleting, Processes::None) => {
            Some(status.archives.first().map_or(Action::Forget, |oldest| Action::Expire(oldest.generation)))
        }
        (Phase::Archived, Processes::None) if status.storage => Some(Action::Remove),
        (
            Phase::Queued | Phase::Pending { .. } | Phase::FallingAsleep | Phase::Asleep | Phase::Archived,
            Processes::None,
        ) => expire(spec, status, observed),
    }
}

/// What it was given is more or less than what it has, as far as anybody knows.
fn resize(status: &Status, observed: &Observed) -> Option<Action> {
    let (epoch, resources) = (status.epoch, status.given?);
    let has = observed.allotted == Some((epoch, resources)) || mutant::is(Mutant::NeverResizes);
    (!has && observed.processes.lives(epoch)).then_some(Action::Resize { epoch, resources })
}

/// The oldest archive goes when its time is over. Only witnessed time makes it old.
fn expire(spec: &Spec, status: &Status, observed: &Observed) -> Option<Action> {
    // Somebody waits for the workspace, and it has to come from there.
    let is_called = spec.wanted == Wanted::Awake && spec.asked > status.answered;
    if status.phase == Phase::Archived && is_called {
        return None;
    }
    let oldest = oldest(status)?;
    let over = age(oldest, observed) >= spec.policy.keep_archives || status.archives.len() > MAX_ARCHIVES;
    let goes = if mutant::is(Mutant::ExpiresNewest) { status.archives.last()? } else { oldest };
    over.then_some(Action::Expire(goes.generation))
}

/// The archive that goes first, when its time has come. One of what the storage holds now stays with it: the storage may be about to
/// be let go for its sake.
pub(super) fn oldest(status: &Status) -> Option<&Archive> {
    let needed = |archive: &&Archive| status.storage && archive.generation == status.storage_generation;
    status.archives.first().filter(|archive| !needed(archive))
}

/// How old it is, in witnessed time.
pub(super) fn age(archive: &Archive, observed: &Observed) -> std::time::Duration {
    observed.witnessed.saturating_sub(archive.witnessed)
}

/// What a failing order means, for people.
pub(super) fn trouble(trouble: &Trouble) -> String {
    format!("{}: {}", means(trouble.action), trouble.failure.words())
}

fn means(action: Action) -> &'static str {
    match action {
        Action::Start(_) => "its agent cannot be started",
        Action::Prepare { .. } => "it cannot be put to sleep",
        Action::Commit(_) => "it does not come to rest",
        Action::Cancel(_) => "its agent does not go on",
        Action::Resize { .. } => "it cannot be given what it is to have",
        Action::Stop => "its processes cannot be ended",
        Action::Archive(_) => "it cannot be archived",
        Action::Restore(_) => "it cannot be restored from its archive",
        Action::Remove => "its storage cannot be removed",
        Action::Expire(_) => "an archive of it cannot be removed",
        Action::Forget => "its record cannot be removed",
    }
}
