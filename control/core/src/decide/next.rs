//! Computes the next step of a workspace that happens without an event, and when it is due.

use std::time::Duration;

use super::{
    Action, HEALTHY_AFTER, HELLO_LIMIT, SILENCE_LIMIT, archive_age, is_pending, oldest_archive, paused_until,
};
use crate::{
    observed::{Observed, RunningAgents, UseState},
    reason::{NextStep, SleepCause},
    status::{MaintenanceStage, Phase, Status},
    time::Timestamp,
    workspace::{DesiredState, Spec},
};

type Next = (Timestamp, NextStep);

/// Returns when to decide again if no event comes before, and the step that is due then.
pub(super) fn of(spec: &Spec, status: &Status, observed: &Observed, now: Timestamp) -> Option<Next> {
    let by_itself =
        of_phase(spec, status, observed, now).into_iter().chain(expiry(spec, status, observed, now));
    by_itself.filter(|next| is_to_come(next, now)).min()
}

/// Returns whether the step lies in the future. A step that is due and not done waits for an event,
/// so deciding again earlier would not help.
fn is_to_come(next: &Next, now: Timestamp) -> bool {
    next.0 > now
}

fn of_phase(spec: &Spec, status: &Status, observed: &Observed, now: Timestamp) -> Option<Next> {
    let connected = observed.connected == Some(status.epoch);
    let silent = |limit: Duration, step| {
        (!connected && observed.processes.is_running(status.epoch))
            .then(|| (now.plus(limit.saturating_sub(observed.silence)), step))
    };
    match status.phase {
        Phase::Pending { not_before } if observed.processes == RunningAgents::None => {
            Some((not_before, NextStep::RestartAgent))
        }
        Phase::Starting | Phase::Maintenance { stage: MaintenanceStage::Starting, .. } => {
            silent(HELLO_LIMIT, NextStep::GiveUpStart)
        }
        Phase::Awake if connected => {
            let sleeps = sleeps(spec, status, observed, now);
            let healthy = (status.failures > 0 && observed.used_by == Some(status.epoch))
                .then(|| (status.since.plus(HEALTHY_AFTER), NextStep::ResetFailures));
            let warned = |(at, _)| (before(at, spec.policy.warned_before()), NextStep::WarnOfSleep);
            let warned = sleeps.into_iter().flatten().min().map(warned);
            let sleeps = sleeps.map(|sleep| sleep.map(|(at, cause)| (at, NextStep::Sleep(cause))));
            let all = sleeps.into_iter().chain([healthy, warned]);
            all.flatten().filter(|next| is_to_come(next, now)).min()
        }
        Phase::Awake | Phase::Committing => silent(SILENCE_LIMIT, NextStep::RestartSilentAgent),
        Phase::Asleep => {
            let stays = status.storage && spec.desired_state != DesiredState::Deleted;
            let asleep = observed.observed_time.saturating_sub(status.slept_at);
            let due = now.plus(if stays {
                spec.policy.archive_after.saturating_sub(asleep)
            } else {
                Duration::ZERO
            });
            status.storage.then(|| (due.max(retry(status, now)), NextStep::Archive))
        }
        Phase::Archived => is_pending(status.maintenance_retry.not_before, now)
            .then_some((status.maintenance_retry.not_before, NextStep::Restore)),
        Phase::Queued
        | Phase::Pending { .. }
        | Phase::Preparing { .. }
        | Phase::FallingAsleep
        | Phase::Maintenance { stage: MaintenanceStage::Running, .. }
        | Phase::Deleting => None,
    }
}

/// Returns the end of the pause after failed maintenance, or `now` if there is no pause.
fn retry(status: &Status, now: Timestamp) -> Timestamp {
    let until = status.maintenance_retry.not_before;
    if is_pending(until, now) { until } else { now }
}

/// Returns for each cause when it puts an awake workspace to sleep, if no event comes before.
fn sleeps(
    spec: &Spec,
    status: &Status,
    observed: &Observed,
    now: Timestamp,
) -> [Option<(Timestamp, SleepCause)>; 3] {
    let soonest = declined_until(observed, now).unwrap_or(now);
    let idle = match observed.used {
        UseState::No(counted) => {
            let since_request = observed.observed_time.saturating_sub(status.requested_at);
            let left = spec.policy.idle_timeout.saturating_sub(counted.min(since_request));
            Some((now.plus(left).max(soonest), SleepCause::Idle))
        }
        UseState::Yes | UseState::Unknown => None,
    };
    let max_awake = spec.policy.max_awake.map(|longest| {
        let left = longest.saturating_sub(observed.observed_time.saturating_sub(status.woke_at));
        (now.plus(left).max(soonest), SleepCause::MaxAwake)
    });
    let is_requested = spec.desired_state != DesiredState::Awake
        || observed.sleep_request.is_some() && observed.used != UseState::Yes;
    let requested = match spec.desired_state.is_gone() {
        true => SleepCause::Deleted,
        false => SleepCause::Requested,
    };
    [idle, max_awake, is_requested.then_some((soonest, requested))]
}

/// Returns the end of the pause after a prepare or commit that was declined or failed.
fn declined_until(observed: &Observed, now: Timestamp) -> Option<Timestamp> {
    let action = observed.last_failure.as_ref()?.action;
    matches!(action, Action::Prepare { .. } | Action::Commit(_))
        .then(|| paused_until(action, observed, now))?
}

/// Returns when and why the workspace falls asleep, if its users must be warned now.
pub(super) fn warning(
    spec: &Spec,
    status: &Status,
    observed: &Observed,
    now: Timestamp,
) -> Option<(Timestamp, SleepCause)> {
    let connected = observed.connected == Some(status.epoch);
    let sleep = sleeps(spec, status, observed, now).into_iter().flatten().min();
    let (at, cause) = sleep.filter(|_| status.phase == Phase::Awake && connected)?;
    (at.since(now) <= spec.policy.warned_before()).then_some((at, cause))
}

/// Returns when the retention of the oldest archive is over.
fn expiry(spec: &Spec, status: &Status, observed: &Observed, now: Timestamp) -> Option<Next> {
    let age = archive_age(oldest_archive(status)?, observed);
    let left = spec.policy.keep_archives.saturating_sub(age);
    Some((now.plus(left), NextStep::ExpireArchive))
}

fn before(at: Timestamp, by: Duration) -> Timestamp {
    Timestamp(at.0.saturating_sub(u64::try_from(by.as_millis()).unwrap_or(u64::MAX)))
}
