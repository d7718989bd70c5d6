//! The one place where the wall clock is read for what is decided and shown. What must not depend on it the driver counts by ticks.

use std::time::{SystemTime, UNIX_EPOCH};

use podling_core::time::Timestamp;

/// Now.
pub(crate) fn now() -> Timestamp {
    // Before 1970 there was no Podling.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
