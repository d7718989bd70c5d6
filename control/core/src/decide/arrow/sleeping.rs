//! To sleep, in two phases, and back.

use super::{Seen, serving};
use crate::{
    decide::{Action, COMMIT_TRIES, SILENCE_LIMIT, pause},
    mutant::{self, Mutant},
    observed::{Door, Failure, Processes, Trouble, Used},
    status::{Phase, Status},
    workspace::Wanted,
};

/// It shall end, and its agent cannot be asked first: nobody hears it, or the control plane goes down and has no time for two
/// phases. (An agent ends in good order and saves what it has then too.)
pub(super) fn end_now(seen: Seen<'_>) -> Option<Status> {
    let one_phase = seen.observed.standby || mutant::is(Mutant::SleepsInOnePhase);
    if one_phase || (!seen.connected() && seen.observed.processes != Processes::Unseen) {
        return serving::end_now(seen);
    }
    None
}

/// It was idle for its whole timeout, or has been awake as long as it may, or somebody asks for it; or it is idle, and the control
/// plane leaves.
pub(super) fn fall_asleep(seen: Seen<'_>) -> Option<Status> {
    if !seen.connected() || paused(seen) {
        return None;
    }
    let policy = &seen.spec.policy;
    let witnessed_since = |then| seen.observed.witnessed.saturating_sub(then);
    // Who has just come has not had the time to do anything yet. And an agent that is still being told to go on is not asked.
    let may_be_asked =
        witnessed_since(seen.status.called) >= policy.idle_timeout && seen.observed.door == Door::Open;
    let (force, why) = match (seen.spec.wanted, seen.observed.used) {
        (Wanted::Asleep, _) => (true, "somebody puts it to sleep"),
        (Wanted::Deleted, _) => (true, "somebody deletes it"),
        _ if is_overdue(seen) => (true, "it has been awake for as long as it may"),
        (_, Used::No(counted)) if counted >= policy.idle_timeout && may_be_asked => (false, "it is not used"),
        // Once: what its agent declines now runs on.
        (_, Used::No(_))
            if seen.observed.leaving && seen.observed.door == Door::Open && !has_declined(seen) =>
        {
            (false, "it is not used, and the control plane stops")
        }
        (_, Used::Unknown) if may_be_asked && mutant::is(Mutant::SleepsOnUnknown) => {
            (false, "nobody knows whether it is used")
        }
        _ => return None,
    };
    let mut next = seen.to(Phase::Preparing { force, declined: refusals(seen, force) }, why);
    next.answered = seen.spec.asked;
    Some(next)
}

/// It has been awake for as long as it may.
fn is_overdue(seen: Seen<'_>) -> bool {
    let awake = seen.observed.witnessed.saturating_sub(seen.status.woken);
    seen.spec.policy.max_awake.is_some_and(|longest| awake >= longest)
}

/// Prepare failed or was declined so often in a row.
fn refusals(seen: Seen<'_>, force: bool) -> u32 {
    prepare_trouble(seen).filter(|trouble| is_forced(trouble) == force).map_or(0, |trouble| trouble.failures)
}

fn is_forced(trouble: &Trouble) -> bool {
    matches!(trouble.action, Action::Prepare { force: true, .. })
}

fn prepare_trouble(seen: Seen<'_>) -> Option<&Trouble> {
    let trouble = seen.observed.trouble.as_ref()?;
    matches!(trouble.action, Action::Prepare { epoch, .. } if epoch == seen.status.epoch).then_some(trouble)
}

fn has_declined(seen: Seen<'_>) -> bool {
    prepare_trouble(seen).or_else(|| commit_trouble(seen)).is_some()
}

fn paused(seen: Seen<'_>) -> bool {
    let trouble = prepare_trouble(seen).or_else(|| commit_trouble(seen));
    trouble.is_some_and(|trouble| pause::of(trouble.action, seen.observed, seen.now).is_some())
}

/// It is used, somebody comes, or nobody hears the agent: it stays awake. Where use is no reason, what its agent cannot do in two
/// phases is done in one.
pub(super) fn reprieve(seen: Seen<'_>, force: bool, declined: u32) -> Option<Status> {
    // Where it would be put to sleep again at once, who comes waits until it has slept.
    if seen.is_called() && !is_overdue(seen) {
        let mut next = seen.to(Phase::Awake, "somebody came before it slept");
        next.called = seen.observed.witnessed;
        next.answered = seen.spec.asked;
        return Some(next);
    }
    let of_this_kind = prepare_trouble(seen).filter(|trouble| is_forced(trouble) == force);
    let refused = of_this_kind.filter(|trouble| trouble.failures != declined);
    match (refused, force) {
        (Some(_), true) => serving::end_now(seen)
            .or_else(|| Some(seen.to(Phase::FallingAsleep, "it has been awake for as long as it may"))),
        (Some(trouble), false) => Some(seen.to(Phase::Awake, trouble.failure.words())),
        _ if !seen.connected() && seen.observed.processes != Processes::Unseen => {
            Some(seen.to(Phase::Awake, "nobody hears its agent, so nobody knows whether it is used"))
        }
        _ if !force && seen.observed.used == Used::Yes => Some(seen.to(Phase::Awake, "it is used again")),
        _ => None,
    }
}

/// The agent lets nothing new begin.
pub(super) fn prepared(seen: Seen<'_>) -> Option<Status> {
    let shut = seen.observed.door == Door::Shut(seen.status.epoch) || mutant::is(Mutant::IgnoresDoor);
    shut.then(|| seen.to(Phase::Committing, seen.status.reason.clone()))
}

/// All has ended and is saved.
pub(super) fn ready(seen: Seen<'_>) -> Option<Status> {
    let ready = seen.observed.ready == Some(seen.status.epoch) || mutant::is(Mutant::EndsBeforeReady);
    ready.then(|| seen.to(Phase::FallingAsleep, seen.status.reason.clone()))
}

/// There is no way back, and the agent does not come to its end by itself.
pub(super) fn give_up(seen: Seen<'_>) -> Option<Status> {
    let why = if seen.observed.processes == Processes::Unseen {
        return None;
    } else if !seen.lives() {
        "its agent ended while it fell asleep"
    } else if !seen.connected() && (seen.observed.silence >= SILENCE_LIMIT || seen.observed.standby) {
        "its agent fell silent while it fell asleep"
    } else if commit_trouble(seen)
        .is_some_and(|t| t.failures >= COMMIT_TRIES && matches!(t.failure, Failure::Failed(_)))
    {
        "its agent does not come to an end by itself"
    } else {
        return None;
    };
    Some(seen.to(Phase::FallingAsleep, why))
}

/// Something came in between after all: the agent goes on. (A door that it shut since then is no refusal.)
pub(super) fn declined(seen: Seen<'_>) -> Option<Status> {
    if seen.observed.door == Door::Shut(seen.status.epoch) {
        return None;
    }
    match &commit_trouble(seen)?.failure {
        Failure::Declined(why) if mutant::is(Mutant::IgnoresRefusal) => {
            Some(seen.to(Phase::FallingAsleep, why))
        }
        // Where use is no reason, an agent that lets it come to that is not asked again and again: it is ended.
        Failure::Declined(_) if seen.spec.wanted != Wanted::Awake || is_overdue(seen) => {
            Some(seen.to(Phase::FallingAsleep, seen.status.reason.clone()))
        }
        Failure::Declined(why) => Some(seen.to(Phase::Awake, why)),
        Failure::Failed(_) => None,
    }
}

fn commit_trouble(seen: Seen<'_>) -> Option<&Trouble> {
    seen.observed.trouble.as_ref().filter(|trouble| trouble.action == Action::Commit(seen.status.epoch))
}

/// Nothing runs any more.
pub(super) fn rest(seen: Seen<'_>) -> Option<Status> {
    (seen.observed.processes == Processes::None).then(|| {
        let mut next = seen.to(Phase::Asleep, seen.status.reason.clone());
        next.rested = seen.observed.witnessed;
        next.failures = 0;
        if mutant::is(Mutant::LosesWake) {
            next.answered = seen.spec.asked;
        }
        next
    })
}

/// Somebody asks for it. Its place in the line is as old as this request.
pub(super) fn wake(seen: Seen<'_>) -> Option<Status> {
    seen.is_called().then(|| {
        let mut next = seen.to(Phase::Queued, "somebody asked for it");
        next.queued = Some(seen.observed.witnessed);
        next.answered = seen.spec.asked;
        next.upkeep = Default::default();
        next
    })
}
