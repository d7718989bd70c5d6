//! The first thing when the control plane is told to stop: what is idle falls asleep, while agents are still heard.

use std::time::Duration;

use tokio::time::timeout;

use crate::driver::DriverHandle;

/// For what is idle to fall asleep when the control plane is told to stop; what takes longer runs on and is adopted.
const LEAVE_TIME: Duration = Duration::from_secs(10);

/// Puts to sleep what is idle, as far as time allows.
pub(super) async fn leave(driver: &DriverHandle) {
    match timeout(LEAVE_TIME, driver.leave()).await {
        Ok(Ok(())) => {}
        // It has ended meanwhile: everything is down.
        Ok(Err(error)) => tracing::debug!(%error, "nothing is put to sleep"),
        Err(_) => tracing::warn!(
            "not all that is idle sleeps after {LEAVE_TIME:?}; it runs on, and the next start adopts it"
        ),
    }
}
