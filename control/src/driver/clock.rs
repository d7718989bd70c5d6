//! The one place where the driver reads the wall clock. What must not depend on it is counted by ticks.

use std::time::{SystemTime, UNIX_EPOCH};

use podling_core::time::Timestamp;

/// Now.
pub(super) fn now() -> Timestamp {
    // Before 1970 there was no Podling.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
