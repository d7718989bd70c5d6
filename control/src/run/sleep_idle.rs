//! The first step of a shutdown: puts idle workspaces to sleep while agents are still connected.

use std::time::Duration;

use tokio::time::timeout;

use crate::driver::DriverHandle;

/// Time for idle workspaces to fall asleep. Those that take longer keep running, and the next start
/// adopts them.
const SLEEP_IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Puts idle workspaces to sleep, as far as the time allows.
pub(super) async fn sleep_idle(driver: &DriverHandle) {
    match timeout(SLEEP_IDLE_TIMEOUT, driver.drain_idle()).await {
        Ok(Ok(())) => {}
        // The driver has ended meanwhile: all workspaces are down.
        Ok(Err(error)) => tracing::debug!(%error, "driver ended before idle workspaces were put to sleep"),
        Err(_) => tracing::warn!(
            "idle workspaces did not fall asleep in {SLEEP_IDLE_TIMEOUT:?}; the next start adopts them"
        ),
    }
}
