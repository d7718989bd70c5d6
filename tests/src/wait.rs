//! Waiting: on a condition, with a deadline, and with words for what did not come. Nothing else in the tests waits.

use std::{
    future::Future,
    time::{Duration, Instant},
};

/// How long anything may take on a loaded machine with two cores before a story gives up.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(60);
/// Least pause between two looks.
pub(crate) const MIN_POLL_PAUSE: Duration = Duration::from_millis(20);
/// The pause is so much longer than the poll before it: a poll by kubectl costs up to 100 ms of a processor, which what is waited for needs too.
const PAUSE_PER_POLL_TIME: u32 = 3;
/// But so long at most.
const MAX_POLL_PAUSE: Duration = Duration::from_millis(500);

/// Waits until `poll` finds something; panics with `what` when [`WAIT_TIMEOUT`] is over.
pub async fn wait_for<T>(what: &str, poll: impl AsyncFnMut() -> Option<T>) -> T {
    wait_long(WAIT_TIMEOUT, what, poll).await
}

/// The same for work that takes its time: bytes by the gigabyte.
pub async fn wait_long<T>(patience: Duration, what: &str, mut poll: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        let looks = Instant::now();
        if let Some(found) = poll().await {
            return found;
        }
        assert!(begun.elapsed() < patience, "waited {patience:?} in vain: {what}");
        tokio::time::sleep((looks.elapsed() * PAUSE_PER_POLL_TIME).clamp(MIN_POLL_PAUSE, MAX_POLL_PAUSE))
            .await;
    }
}

/// What a future gives; panics with `what` when [`WAIT_TIMEOUT`] is over.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(WAIT_TIMEOUT, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {WAIT_TIMEOUT:?} in vain: {what}"),
    }
}

/// The same for code that cannot be async (`Drop`): whether `poll` became true in time.
pub fn wait_blocking(patience: Duration, poll: impl FnMut() -> bool) -> bool {
    poll_until(patience, MIN_POLL_PAUSE, poll)
}

/// Looks every millisecond, for what is there for a moment only: whether `poll` became true before [`WAIT_TIMEOUT`] was over.
pub fn wait_blocking_every_ms(poll: impl FnMut() -> bool) -> bool {
    poll_until(WAIT_TIMEOUT, Duration::from_millis(1), poll)
}

fn poll_until(patience: Duration, pause: Duration, mut poll: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    loop {
        if poll() {
            return true;
        }
        if begun.elapsed() > patience {
            return false;
        }
        // Nobody unparks this thread: it is a pause between two looks.
        std::thread::park_timeout(pause);
    }
}
