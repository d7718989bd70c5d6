//! From the wish to be awake to being it.

use std::collections::BTreeSet;

use super::Seen;
use crate::{
    decide::{HEALTHY_AFTER, HELLO_LIMIT, SERVED, SILENCE_LIMIT, pause},
    mutant::{self, Mutant},
    observed::Processes,
    status::{Phase, Status},
    time::Timestamp,
    workspace::Wanted,
};

/// It shall not be awake after all, or the control plane goes down.
pub(super) fn end_now(seen: Seen<'_>) -> Option<Status> {
    let why = match seen.spec.wanted {
        _ if seen.observed.standby => "the control plane is going down",
        Wanted::Asleep => "somebody put it to sleep",
        Wanted::Deleted => "somebody deleted it",
        Wanted::Awake | Wanted::Discarded => return None,
    };
    let mut next = seen.to(Phase::FallingAsleep, why);
    next.answered = seen.spec.asked;
    Some(next)
}

/// It has just been made: it joins the line.
pub(super) fn lined_up(seen: Seen<'_>) -> Option<Status> {
    let joined = Some(seen.observed.witnessed);
    seen.status.queued.is_none().then(|| Status { queued: joined, ..seen.status.clone() })
}

/// There is room.
pub(super) fn admit(seen: Seen<'_>) -> Option<Status> {
    seen.observed.room.then(|| Status {
        given: Some(seen.spec.resources),
        queued: None,
        ..seen.to(Phase::Pending { not_before: seen.now }, seen.status.reason.clone())
    })
}

/// It wants another share than it was given. Less is given back at once; for more it stands in line, and goes on with what it has.
pub(super) fn resized(seen: Seen<'_>) -> Option<Status> {
    let wanted = seen.spec.resources;
    let stays = seen.status.given == Some(wanted);
    let may_have = seen.observed.room || mutant::is(Mutant::GrowsAtOnce);
    let is_given = seen.status.given.is_none_or(|given| may_have || wanted.fits_in(given));
    let status = seen.status.clone();
    match (stays, seen.status.queued) {
        (true, None) => None,
        (true, Some(_)) => Some(Status { queued: None, ..status }),
        (false, _) if is_given => Some(Status { given: Some(wanted), queued: None, ..status }),
        (false, None) => Some(Status { queued: Some(seen.observed.witnessed), ..status }),
        (false, Some(_)) => None,
    }
}

/// Nothing of an earlier agent runs and the pause is over.
pub(super) fn start(seen: Seen<'_>, not_before: Timestamp) -> Option<Status> {
    let something_runs = match seen.observed.processes {
        Processes::None => false,
        Processes::Some(_) => !mutant::is(Mutant::StartsBeside),
        Processes::Unseen => true,
    };
    if something_runs || pause::waits(not_before, seen.now) {
        return None;
    }
    let reason = match seen.status.failures {
        0 => "its agent is being started".to_owned(),
        n => format!("its agent is being started again (failures before: {n}); {}", seen.status.reason),
    };
    let mut next = seen.to(Phase::Starting, reason);
    if !(mutant::is(Mutant::ReusesEpoch) && next.failures > 0) {
        next.epoch += 1;
    }
    if !mutant::is(Mutant::KeepsGeneration) {
        next.storage_generation += 1;
    }
    next.storage = true;
    Some(next)
}

/// The agent ended or never lived, is not alone, or does not say hello.
pub(super) fn start_failed(seen: Seen<'_>) -> Option<Status> {
    let why = why_not_started(seen)?;
    Some(seen.fail(why, seen.status.failures.saturating_add(1)))
}

/// Why the agent that was ordered will not serve.
pub(super) fn why_not_started(seen: Seen<'_>) -> Option<String> {
    let (status, observed) = (seen.status, seen.observed);
    let alone = BTreeSet::from([status.epoch]);
    match (&observed.ended, &observed.processes) {
        (Some(ended), _) if ended.epoch == status.epoch => {
            Some(format!("its agent did not start: {}", ended.how))
        }
        (_, Processes::Some(agents)) if !agents.is_subset(&alone) && !mutant::is(Mutant::StartsBeside) => {
            Some("an earlier agent of it was found alive".to_owned())
        }
        _ if seen.lives() && observed.silence >= HELLO_LIMIT => {
            Some(format!("its agent said nothing for {HELLO_LIMIT:?}"))
        }
        _ => None,
    }
}

/// The agent that was ordered has said hello.
pub(super) fn hello(seen: Seen<'_>) -> Option<Status> {
    (seen.connected() && seen.lives()).then(|| {
        let mut next = seen.to(Phase::Awake, SERVED);
        next.woken = seen.observed.witnessed;
        next.called = seen.observed.witnessed;
        next
    })
}

/// The agent is not there any more. The first time it is started again at once.
pub(super) fn died(seen: Seen<'_>) -> Option<Status> {
    if seen.observed.processes == Processes::Unseen || seen.lives() {
        return None;
    }
    let how = seen.observed.ended.as_ref().filter(|ended| ended.epoch == seen.status.epoch);
    let why = format!("its agent ended: {}", how.map_or("nobody saw how", |ended| &ended.how));
    Some(seen.fail(why, seen.status.failures))
}

/// The agent lives but was not heard of for too long.
pub(super) fn silent(seen: Seen<'_>) -> Option<Status> {
    let unheard = seen.lives() && !seen.connected();
    let silent = seen.observed.silence >= SILENCE_LIMIT || mutant::is(Mutant::EndsUnheard);
    (unheard && silent).then(|| {
        let why = format!("its agent was silent for {} minutes", SILENCE_LIMIT.as_secs() / 60);
        seen.fail(why, seen.status.failures)
    })
}

/// Its agent is lost again, and nobody has used it since it was started again. Each new agent begins to count idle time from nothing:
/// but for this, whoever ends it in time would keep it awake for ever (law 4). Nothing runs any more that sleep could end.
pub(super) fn worn_out(seen: Seen<'_>) -> Option<Status> {
    let lost = died(seen).or_else(|| silent(seen))?;
    (seen.status.failures > 0 && !seen.was_used()).then(|| {
        let why = format!("{}; nobody has used it since it was started again", lost.reason);
        Status { answered: seen.spec.asked, ..seen.to(Phase::FallingAsleep, why) }
    })
}

/// It has been well for a while, and is used: earlier failures do not count any more.
pub(super) fn healthy(seen: Seen<'_>) -> Option<Status> {
    let for_a_while = seen.now.since(seen.status.since) >= HEALTHY_AFTER;
    let well = seen.connected() && seen.was_used() && for_a_while && seen.status.failures > 0;
    well.then(|| Status { failures: 0, ..seen.status.clone() })
}
