//! Waits for conditions with a timeout. Tests wait only by these functions,
//! unless their clock is paused.

use std::{
    future::Future,
    time::{Duration, Instant},
};

/// Timeout of a wait, long enough for a loaded machine with two cores. The pods of other stories may
/// take all processors of the node for more than a minute, and a new pod then waits for one to end.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(120);
/// Minimum pause between two polls.
pub(crate) const MIN_POLL_PAUSE: Duration = Duration::from_millis(20);
/// Ratio of a pause to the duration of the poll before it. A poll with kubectl takes up to 100 ms
/// of processor time, which the awaited process needs too.
const PAUSE_PER_POLL_TIME: u32 = 3;
/// Maximum pause between two polls.
const MAX_POLL_PAUSE: Duration = Duration::from_millis(500);

/// Waits until `poll` returns a value. Panics with `what`, the description of the condition, after
/// [`WAIT_TIMEOUT`].
pub async fn wait_for<T>(what: &str, poll: impl AsyncFnMut() -> Option<T>) -> T {
    wait_long(WAIT_TIMEOUT, what, poll).await
}

/// Waits until a condition holds. Panics with `what`, its description, after [`WAIT_TIMEOUT`].
pub async fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    wait_for(what, async || holds().then_some(())).await;
}

/// Waits like [`wait_for`] with another timeout, for example for gigabytes of data.
pub async fn wait_long<T>(timeout: Duration, what: &str, mut poll: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        let poll_start = Instant::now();
        if let Some(found) = poll().await {
            return found;
        }
        assert!(started.elapsed() < timeout, "timed out after {timeout:?}: {what}");
        tokio::time::sleep(
            (poll_start.elapsed() * PAUSE_PER_POLL_TIME).clamp(MIN_POLL_PAUSE, MAX_POLL_PAUSE),
        )
        .await;
    }
}

/// Returns the output of a future. Panics with `what`, the description of the wait, after
/// [`WAIT_TIMEOUT`].
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(WAIT_TIMEOUT, future).await {
        Ok(value) => value,
        Err(_) => panic!("timed out after {WAIT_TIMEOUT:?}: {what}"),
    }
}

/// Waits like [`wait_for`] in code that cannot be async, such as `Drop`. Returns whether `poll`
/// returned true before the timeout.
pub fn wait_blocking(timeout: Duration, poll: impl FnMut() -> bool) -> bool {
    poll_until(timeout, MIN_POLL_PAUSE, poll)
}

/// Polls every millisecond, for conditions that hold only briefly. Returns whether `poll` returned
/// true before [`WAIT_TIMEOUT`].
pub fn wait_blocking_every_ms(poll: impl FnMut() -> bool) -> bool {
    poll_until(WAIT_TIMEOUT, Duration::from_millis(1), poll)
}

fn poll_until(timeout: Duration, pause: Duration, mut poll: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    loop {
        if poll() {
            return true;
        }
        if started.elapsed() > timeout {
            return false;
        }
        // No thread unparks this one, so the call is only a pause between two polls.
        std::thread::park_timeout(pause);
    }
}
