//! The arrows of the drawing: each one function, which says where the workspace goes if the arrow applies.

use std::collections::BTreeSet;

use super::{HEALTHY_AFTER, HELLO_LIMIT, SILENCE_LIMIT, pause, waits};
use crate::{
    observed::{Observed, Processes},
    status::{Phase, Status},
    time::Timestamp,
    workspace::{Spec, Wanted},
};

/// The first arrow that applies.
pub(super) fn follow(spec: &Spec, status: &Status, observed: &Observed, now: Timestamp) -> Option<Status> {
    if let Some(deleting) = delete(spec, status, now) {
        return Some(deleting);
    }
    match status.phase {
        Phase::Pending { not_before } => {
            standby(status, observed, now).or_else(|| start(status, observed, not_before, now))
        }
        Phase::Starting => standby(status, observed, now)
            .or_else(|| start_failed(status, observed, now))
            .or_else(|| hello(status, observed, now)),
        Phase::Awake => standby(status, observed, now)
            .or_else(|| died(status, observed, now))
            .or_else(|| silent(status, observed, now))
            .or_else(|| healthy(status, observed, now)),
        Phase::FallingAsleep => rest(status, observed, now).or_else(|| come_back(status, observed, now)),
        Phase::Asleep => come_back(status, observed, now),
        Phase::Deleting => None,
    }
}

/// Somebody wants it gone.
fn delete(spec: &Spec, status: &Status, now: Timestamp) -> Option<Status> {
    (spec.wanted == Wanted::Deleted && status.phase != Phase::Deleting)
        .then(|| to(status, Phase::Deleting, "somebody wants it gone", now))
}

/// Nothing of an earlier agent runs and the pause is over.
fn start(status: &Status, observed: &Observed, not_before: Timestamp, now: Timestamp) -> Option<Status> {
    if observed.processes != Processes::None || waits(not_before, now) {
        return None;
    }
    let reason = match status.failures {
        0 => "its agent is being started".to_owned(),
        n => format!("its agent is being started again (failures before: {n}); {}", status.reason),
    };
    let mut next = to(status, Phase::Starting, reason, now);
    next.epoch += 1;
    next.storage_generation += 1;
    Some(next)
}

/// The agent ended or never lived, is not alone, or does not say hello.
fn start_failed(status: &Status, observed: &Observed, now: Timestamp) -> Option<Status> {
    let alone = BTreeSet::from([status.epoch]);
    let why = match (&observed.ended, &observed.processes) {
        (Some(ended), _) if ended.epoch == status.epoch => format!("its agent did not start: {}", ended.how),
        (_, Processes::Some(agents)) if !agents.is_subset(&alone) => {
            "an earlier agent of it was found alive".to_owned()
        }
        _ if observed.processes.lives(status.epoch) && observed.silence >= HELLO_LIMIT => {
            format!("its agent said nothing for {HELLO_LIMIT:?}")
        }
        _ => return None,
    };
    Some(fail(status, why, status.failures.saturating_add(1), now))
}

/// The agent that was ordered has said hello.
fn hello(status: &Status, observed: &Observed, now: Timestamp) -> Option<Status> {
    (observed.connected == Some(status.epoch) && observed.processes.lives(status.epoch))
        .then(|| to(status, Phase::Awake, "its agent serves it", now))
}

/// The agent is not there any more. The first time it is started again at once.
fn died(status: &Status, observed: &Observed, now: Timestamp) -> Option<Status> {
    if observed.processes == Processes::Unseen || observed.processes.lives(status.epoch) {
        return None;
    }
    let how = observed.ended.as_ref().filter(|ended| ended.epoch == status.epoch);
    let why = format!("its agent ended: {}", how.map_or("nobody saw how", |ended| &ended.how));
    Some(fail(status, why, status.failures, now))
}

/// The agent lives but was not heard of for too long.
fn silent(status: &Status, observed: &Observed, now: Timestamp) -> Option<Status> {
    let unheard = observed.processes.lives(status.epoch) && observed.connected != Some(status.epoch);
    (unheard && observed.silence >= SILENCE_LIMIT).then(|| {
        let why = format!("its agent was silent for {} minutes", SILENCE_LIMIT.as_secs() / 60);
        fail(status, why, status.failures, now)
    })
}

/// It has been well for a while: earlier failures do not count any more.
fn healthy(status: &Status, observed: &Observed, now: Timestamp) -> Option<Status> {
    let well = observed.connected == Some(status.epoch)
        && now.since(status.since) >= HEALTHY_AFTER
        && status.failures > 0;
    well.then(|| Status { failures: 0, ..status.clone() })
}

/// The control plane goes down.
fn standby(status: &Status, observed: &Observed, now: Timestamp) -> Option<Status> {
    observed.standby.then(|| to(status, Phase::FallingAsleep, "the control plane is going down", now))
}

/// Nothing runs any more.
fn rest(status: &Status, observed: &Observed, now: Timestamp) -> Option<Status> {
    (observed.standby && observed.processes == Processes::None).then(|| {
        to(status, Phase::Asleep, "the control plane went down; it starts when that is up again", now)
    })
}

/// The control plane is up again, or did not get as far as going down.
fn come_back(status: &Status, observed: &Observed, now: Timestamp) -> Option<Status> {
    (!observed.standby)
        .then(|| to(status, Phase::Pending { not_before: now }, "the control plane is up again", now))
}

/// Into the pause that `counted` failures ask for, with one failure more.
fn fail(status: &Status, why: String, counted: u32, now: Timestamp) -> Status {
    let mut next = to(status, Phase::Pending { not_before: now.plus(pause(counted)) }, why, now);
    next.failures = next.failures.saturating_add(1);
    next
}

fn to(status: &Status, phase: Phase, reason: impl Into<String>, now: Timestamp) -> Status {
    Status { phase, reason: reason.into(), since: now, ..status.clone() }
}
