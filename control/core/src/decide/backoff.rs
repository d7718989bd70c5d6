//! Pauses after failures.

use std::time::Duration;

use super::{Action, FIRST_PAUSE, LONGEST_PAUSE};
use crate::{observed::Observed, time::Timestamp};

/// Time until which `action` is not retried; `None` if it has not just failed.
pub(super) fn of(action: Action, observed: &Observed, now: Timestamp) -> Option<Timestamp> {
    let last = observed.last_failure.as_ref().filter(|last| last.action == action)?;
    let until = last.at.plus(after(last.failures));
    is_pending(until, now).then_some(until)
}

/// The pause after this many failures in a row.
pub(super) fn after(failures: u32) -> Duration {
    match failures.checked_sub(1) {
        None => Duration::ZERO,
        Some(doublings) => FIRST_PAUSE.saturating_mul(1 << doublings.min(16)).min(LONGEST_PAUSE),
    }
}

/// Whether `until` is still to come. A pause longer than [`LONGEST_PAUSE`] means that the clock was
/// set back; it counts as over.
pub(super) fn is_pending(until: Timestamp, now: Timestamp) -> bool {
    let left = until.since(now);
    !left.is_zero() && left <= LONGEST_PAUSE
}
