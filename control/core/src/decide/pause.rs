//! Pauses after failures.

use std::time::Duration;

use super::{Action, FIRST_PAUSE, LONGEST_PAUSE};
use crate::{observed::Observed, time::Timestamp};

/// Until when this action waits because it has just failed.
pub(super) fn of(action: Action, observed: &Observed, now: Timestamp) -> Option<Timestamp> {
    let trouble = observed.trouble.as_ref().filter(|t| t.action == action)?;
    let until = trouble.at.plus(after(trouble.failures));
    waits(until, now).then_some(until)
}

/// The pause after so many failures in a row.
pub(super) fn after(failures: u32) -> Duration {
    match failures.checked_sub(1) {
        None => Duration::ZERO,
        Some(doublings) => FIRST_PAUSE.saturating_mul(1 << doublings.min(16)).min(LONGEST_PAUSE),
    }
}

/// Whether `until` is still to come. A pause longer than any we give means the clock was set back: it is over.
pub(super) fn waits(until: Timestamp, now: Timestamp) -> bool {
    let left = until.since(now);
    !left.is_zero() && left <= LONGEST_PAUSE
}
