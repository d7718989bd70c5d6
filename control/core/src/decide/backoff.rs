//! Exponential pauses before a failed action is retried, from [`MIN_BACKOFF`] to [`MAX_BACKOFF`].

use std::time::Duration;

use super::{Action, MAX_BACKOFF, MIN_BACKOFF};
use crate::{observed::Observed, time::Timestamp};

/// Returns the end of the pause before `action` is retried. Returns `None` if the pause is over, or
/// if the last failure is of another action.
pub(super) fn of(action: Action, observed: &Observed, now: Timestamp) -> Option<Timestamp> {
    let last = observed.last_failure.as_ref().filter(|last| last.action == action)?;
    let until = last.at.plus(after(last.failures));
    is_pending(until, now).then_some(until)
}

/// Returns the pause after this many failures in a row.
pub(super) fn after(failures: u32) -> Duration {
    match failures.checked_sub(1) {
        None => Duration::ZERO,
        Some(doublings) => MIN_BACKOFF.saturating_mul(1 << doublings.min(16)).min(MAX_BACKOFF),
    }
}

/// Returns whether `until` is still to come. A pause longer than [`MAX_BACKOFF`] means that the
/// clock was set back, so the pause is taken as over.
pub(super) fn is_pending(until: Timestamp, now: Timestamp) -> bool {
    let left = until.since(now);
    !left.is_zero() && left <= MAX_BACKOFF
}
