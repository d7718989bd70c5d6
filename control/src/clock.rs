//! The wall clock, for displayed times and for the ends of pauses after failures. Durations that a
//! change of the clock must not affect are counted in driver ticks instead.

use std::time::{SystemTime, UNIX_EPOCH};

use podling_core::time::Timestamp;

/// Returns the wall-clock time in milliseconds since 1970.
pub(crate) fn now() -> Timestamp {
    // A clock before 1970 reads as 1970.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
