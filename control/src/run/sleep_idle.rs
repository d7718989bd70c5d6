//! Puts idle workspaces to sleep as the first step of a shutdown, while agents are still connected.

use std::time::Duration;

use tokio::time::timeout;

use crate::driver::DriverHandle;

/// Time for idle workspaces to fall asleep. Those that take longer keep running, and the next start
/// adopts them.
const SLEEP_IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Puts idle workspaces to sleep, for at most [`SLEEP_IDLE_TIMEOUT`].
pub(super) async fn sleep_idle(driver: &DriverHandle) {
    match timeout(SLEEP_IDLE_TIMEOUT, driver.drain_idle()).await {
        Ok(Ok(())) => {}
        // `podling down` has ended the driver meanwhile, and with it all workspaces.
        Ok(Err(error)) => tracing::debug!(%error, "driver ended before idle workspaces were put to sleep"),
        Err(_) => tracing::warn!(
            timeout = ?SLEEP_IDLE_TIMEOUT,
            "idle workspaces did not fall asleep in time; the next start adopts them"
        ),
    }
}
