//! The only place that reads the wall clock for decisions and display. Whatever must not depend on
//! it is counted in driver ticks.

use std::time::{SystemTime, UNIX_EPOCH};

use podling_core::time::Timestamp;

pub(crate) fn now() -> Timestamp {
    // A clock before 1970 reads as 1970.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
