//! To sleep, in two phases, and back.

use super::{Seen, serving};
use crate::{
    decide::{Action, COMMIT_TRIES, SILENCE_LIMIT, pause},
    mutant::{self, Mutant},
    observed::{Door, Failure, Processes, Trouble, Used},
    status::{Phase, Status, Urgency},
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

/// It was idle for its whole timeout, or has been awake as long as it may, or somebody asks for it.
pub(super) fn fall_asleep(seen: Seen<'_>) -> Option<Status> {
    if !seen.connected() {
        return None;
    }
    let policy = &seen.spec.policy;
    let witnessed_since = |then| seen.observed.witnessed.saturating_sub(then);
    // Who has just come has not had the time to do anything yet. And an agent that is still being told to go on is not asked.
    let is_open = seen.observed.door == Door::Open;
    let may_be_asked = witnessed_since(seen.status.called) >= policy.idle_timeout && is_open;
    let asked = seen.observed.asked.filter(|_| is_open);
    let (urgency, why) = match (seen.spec.wanted, seen.observed.used, asked) {
        (Wanted::Asleep, ..) => (Urgency::Forced, "somebody puts it to sleep"),
        (Wanted::Deleted, ..) => (Urgency::Forced, "somebody deletes it"),
        _ if is_overdue(seen) => (Urgency::Forced, "it has been awake for as long as it may"),
        // Whether it is used the agent itself knows best.
        (_, Used::No(_) | Used::Unknown, Some(why)) => (Urgency::Asked, why),
        (_, Used::No(counted), None) if counted >= policy.idle_timeout && may_be_asked => {
            (Urgency::Idle, "it is not used")
        }
        (_, Used::Unknown, None) if may_be_asked && mutant::is(Mutant::SleepsOnUnknown) => {
            (Urgency::Idle, "nobody knows whether it is used")
        }
        _ => return None,
    };
    if paused(seen, urgency) {
        return None;
    }
    let mut next = seen.to(Phase::Preparing { urgency, declined: refusals(seen, urgency) }, why);
    next.answered = seen.spec.asked;
    Some(next)
}

/// It has been awake for as long as it may.
fn is_overdue(seen: Seen<'_>) -> bool {
    let awake = seen.observed.witnessed.saturating_sub(seen.status.woken);
    seen.spec.policy.max_awake.is_some_and(|longest| awake >= longest)
}

/// Prepare failed or was declined so often in a row.
fn refusals(seen: Seen<'_>, urgency: Urgency) -> u32 {
    prepare_trouble(seen, urgency).map_or(0, |trouble| trouble.failures)
}

fn prepare_trouble(seen: Seen<'_>, urgency: Urgency) -> Option<&Trouble> {
    let action = Action::Prepare { epoch: seen.status.epoch, urgency };
    seen.observed.trouble.as_ref().filter(|trouble| trouble.action == action)
}

fn paused(seen: Seen<'_>, urgency: Urgency) -> bool {
    let trouble = prepare_trouble(seen, urgency).or_else(|| commit_trouble(seen));
    trouble.is_some_and(|trouble| pause::of(trouble.action, seen.observed, seen.now).is_some())
}

/// It is used, somebody comes, or nobody hears the agent: it stays awake. Where use is no reason, what its agent cannot do in two
/// phases is done in one.
pub(super) fn reprieve(seen: Seen<'_>, urgency: Urgency, declined: u32) -> Option<Status> {
    // Where it would be put to sleep again at once, who comes waits until it has slept.
    if seen.is_called() && !is_overdue(seen) {
        let mut next = seen.to(Phase::Awake, "somebody came before it slept");
        next.called = seen.observed.witnessed;
        next.answered = seen.spec.asked;
        return Some(next);
    }
    let refused = prepare_trouble(seen, urgency).filter(|trouble| trouble.failures != declined);
    match (refused, urgency) {
        (Some(_), Urgency::Forced) => serving::end_now(seen)
            .or_else(|| Some(seen.to(Phase::FallingAsleep, "it has been awake for as long as it may"))),
        (Some(trouble), Urgency::Idle | Urgency::Asked) => {
            Some(seen.to(Phase::Awake, trouble.failure.words()))
        }
        _ if !seen.connected() && seen.observed.processes != Processes::Unseen => {
            Some(seen.to(Phase::Awake, "nobody hears its agent, so nobody knows whether it is used"))
        }
        _ if urgency != Urgency::Forced && seen.observed.used == Used::Yes => {
            Some(seen.to(Phase::Awake, "it is used again"))
        }
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
        (next.given, next.queued) = (None, None);
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
