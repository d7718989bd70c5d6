//! What happens next by itself, and when.

use std::time::Duration;

use super::{Action, HEALTHY_AFTER, HELLO_LIMIT, SILENCE_LIMIT, order, pause};
use crate::{
    observed::{Observed, Processes, Used},
    status::{Phase, Status},
    time::Timestamp,
    workspace::{Spec, Wanted},
};

type Next = (Timestamp, &'static str);

/// When to look again if nothing happens before, and why.
pub(super) fn of(spec: &Spec, status: &Status, observed: &Observed, now: Timestamp) -> Option<Next> {
    let by_itself =
        of_phase(spec, status, observed, now).into_iter().chain(expiry(spec, status, observed, now));
    by_itself.filter(|next| is_to_come(next, now)).min()
}

/// What is due and not done waits for something else, which is told when it happens: looking again and again does not hasten it.
fn is_to_come(next: &Next, now: Timestamp) -> bool {
    next.0 > now
}

fn of_phase(spec: &Spec, status: &Status, observed: &Observed, now: Timestamp) -> Option<Next> {
    let connected = observed.connected == Some(status.epoch);
    let silent = |limit: Duration, why| {
        (!connected && observed.processes.lives(status.epoch))
            .then(|| (now.plus(limit.saturating_sub(observed.silence)), why))
    };
    match status.phase {
        Phase::Pending { not_before } if observed.processes == Processes::None => {
            Some((not_before, "its agent is started again"))
        }
        Phase::Starting | Phase::Opening(_) => {
            silent(HELLO_LIMIT, "an agent that does not say hello is given up")
        }
        Phase::Awake if connected => {
            let sleeps = sleeps(spec, status, observed, now);
            let well = (status.failures > 0 && observed.used_by == Some(status.epoch))
                .then(|| (status.since.plus(HEALTHY_AFTER), "it counts as healthy"));
            let warned =
                |(at, _): Next| (before(at, spec.policy.warned_before()), "it is warned of its sleep");
            let warned = sleeps.into_iter().flatten().min().map(warned);
            let all = sleeps.into_iter().chain([well, warned]);
            all.flatten().filter(|next| is_to_come(next, now)).min()
        }
        Phase::Awake | Phase::Committing => silent(SILENCE_LIMIT, "a silent agent is started anew"),
        Phase::Asleep => {
            let kept = status.storage && spec.wanted != Wanted::Deleted;
            let slept = observed.witnessed.saturating_sub(status.rested);
            let due =
                now.plus(if kept { spec.policy.archive_after.saturating_sub(slept) } else { Duration::ZERO });
            status.storage.then(|| (due.max(retry(status, now)), "its storage is archived and let go"))
        }
        Phase::Archived => pause::waits(status.upkeep.not_before, now)
            .then_some((status.upkeep.not_before, "it is restored from its archive")),
        Phase::Queued
        | Phase::Pending { .. }
        | Phase::Preparing { .. }
        | Phase::FallingAsleep
        | Phase::Working(_)
        | Phase::Deleting => None,
    }
}

/// The end of the pause after a failed try at its storage.
fn retry(status: &Status, now: Timestamp) -> Timestamp {
    if pause::waits(status.upkeep.not_before, now) { status.upkeep.not_before } else { now }
}

/// What may put an awake workspace to sleep if nothing happens, and when.
fn sleeps(spec: &Spec, status: &Status, observed: &Observed, now: Timestamp) -> [Option<Next>; 3] {
    let asked_again = sleeping_pause(observed, now).unwrap_or(now);
    let unused = match observed.used {
        Used::No(counted) => {
            let here = observed.witnessed.saturating_sub(status.called);
            let left = spec.policy.idle_timeout.saturating_sub(counted.min(here));
            Some((now.plus(left).max(asked_again), "it falls asleep unless it is used"))
        }
        Used::Yes | Used::Unknown => None,
    };
    let longest = spec.policy.max_awake.map(|longest| {
        let left = longest.saturating_sub(observed.witnessed.saturating_sub(status.woken));
        (now.plus(left).max(asked_again), "it has been awake for as long as it may")
    });
    let unwanted = (spec.wanted != Wanted::Awake || observed.asked.is_some() && observed.used != Used::Yes)
        .then_some((asked_again, "it is put to sleep"));
    [unused, longest, unwanted]
}

/// Until when an agent that has just declined to sleep is left alone.
fn sleeping_pause(observed: &Observed, now: Timestamp) -> Option<Timestamp> {
    let action = observed.trouble.as_ref()?.action;
    matches!(action, Action::Prepare { .. } | Action::Commit(_)).then(|| pause::of(action, observed, now))?
}

/// What people in the workspace are to be told.
pub(super) fn warning(spec: &Spec, status: &Status, observed: &Observed, now: Timestamp) -> Option<Next> {
    let connected = observed.connected == Some(status.epoch);
    let sleep = sleeps(spec, status, observed, now).into_iter().flatten().min();
    let (at, why) = sleep.filter(|_| status.phase == Phase::Awake && connected)?;
    (at.since(now) <= spec.policy.warned_before()).then_some((at, why))
}

/// When the oldest archive's time is over.
fn expiry(spec: &Spec, status: &Status, observed: &Observed, now: Timestamp) -> Option<Next> {
    let left = spec.policy.keep_archives.saturating_sub(order::age(order::oldest(status)?, observed));
    Some((now.plus(left), "its oldest archive is removed"))
}

fn before(at: Timestamp, by: Duration) -> Timestamp {
    Timestamp(at.0.saturating_sub(u64::try_from(by.as_millis()).unwrap_or(u64::MAX)))
}
