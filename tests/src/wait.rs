//! Waiting: on a condition, with a deadline, and with words for what did not come. Nothing else in the tests waits.

use std::{
    future::Future,
    time::{Duration, Instant},
};

/// How long anything may take on a loaded machine with two cores before a story gives up.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Least pause between two looks.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// The pause is so much longer than the look before it: a look by kubectl costs up to 100 ms of a processor, which what is waited for needs too.
const LONGER_THAN_A_LOOK: u32 = 3;
/// But so long at most.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Waits until `look` finds something; panics with `what` when [`PATIENCE`] is over.
pub async fn wait_for<T>(what: &str, look: impl AsyncFnMut() -> Option<T>) -> T {
    wait_long(PATIENCE, what, look).await
}

/// The same for work that takes its time: bytes by the gigabyte.
pub async fn wait_long<T>(patience: Duration, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        let looks = Instant::now();
        if let Some(found) = look().await {
            return found;
        }
        assert!(begun.elapsed() < patience, "waited {patience:?} in vain: {what}");
        tokio::time::sleep((looks.elapsed() * LONGER_THAN_A_LOOK).clamp(LOOK_AGAIN, LONGEST_PAUSE)).await;
    }
}

/// What a future gives; panics with `what` when [`PATIENCE`] is over.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {PATIENCE:?} in vain: {what}"),
    }
}

/// The same for code that cannot be async (`Drop`): whether `look` became true in time.
pub fn wait_blocking(patience: Duration, look: impl FnMut() -> bool) -> bool {
    look_until(patience, LOOK_AGAIN, look)
}

/// Looks every millisecond, for what is there for a moment only: whether `look` became true before [`PATIENCE`] was over.
pub fn wait_blocking_closely(look: impl FnMut() -> bool) -> bool {
    look_until(PATIENCE, Duration::from_millis(1), look)
}

fn look_until(patience: Duration, pause: Duration, mut look: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    loop {
        if look() {
            return true;
        }
        if begun.elapsed() > patience {
            return false;
        }
        // Nobody unparks this thread: it is a pause between two looks.
        std::thread::park_timeout(pause);
    }
}
