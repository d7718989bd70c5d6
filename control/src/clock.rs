//! Reads the wall clock, which only dates what is stored and shown. Durations that decisions depend
//! on are counted by the driver's ticks.

use std::time::{SystemTime, UNIX_EPOCH};

use podling_core::time::Timestamp;

pub(crate) fn now() -> Timestamp {
    // A clock before 1970 reads as 1970.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
