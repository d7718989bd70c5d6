//! Small functions that several modules need and none of them owns. Independent of all other
//! modules.

use std::{
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use ring::digest::{Context, SHA256, digest};
use tokio::sync::Notify;

/// Locks `mutex` also after a panic of another thread that held it. Code that uses this must leave
/// the value usable at every point where it may panic.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// Waits for the future, or for ever if there is none.
pub(crate) async fn or_never<T>(future: Option<impl Future<Output = T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

/// How the output of a program is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadMode {
    /// Reads when the reactor reports output.
    WhenReady,
    /// Reads once more before the output counts as ended, regardless of the reactor. While the
    /// agent is suspended, the reactor reports nothing.
    Final,
}

/// Sleeps until `at`, or for ever if it is `None`.
pub(crate) async fn sleep_until(at: Option<Instant>) {
    or_never(at.map(|at| tokio::time::sleep_until(at.into()))).await;
}

/// Waits until `ready` returns a value. Calls it at once, and whenever all waiters of `changed` are
/// notified. Cancel-safe.
pub(crate) async fn wait_until<T>(changed: &Notify, mut ready: impl FnMut() -> Option<T>) -> T {
    loop {
        let notified = changed.notified();
        tokio::pin!(notified);
        // Enabled first, so that no change between the call and the wait is missed.
        notified.as_mut().enable();
        if let Some(found) = ready() {
            return found;
        }
        notified.await;
    }
}

/// Delays between attempts. Each is twice as long as the one before, up to a maximum.
#[derive(Debug, Clone)]
pub(crate) struct DoublingBackoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl DoublingBackoff {
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// Returns the delay before the next attempt.
    pub(crate) fn next(&mut self) -> Duration {
        let next = (self.next * 2).min(self.longest);
        std::mem::replace(&mut self.next, next)
    }

    /// Makes the first delay the next one, after a successful attempt.
    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }
}

/// Characters of a random id: lower-case base32.
const ID_ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
const ID_LEN: usize = 12;

/// Returns a new id of twelve random characters.
pub(crate) fn random_id() -> String {
    (0..ID_LEN).map(|_| char::from(ID_ALPHABET[fastrand::usize(..ID_ALPHABET.len())])).collect()
}

/// Returns whether [`random_id`] could return this text.
pub(crate) fn is_random_id(text: &str) -> bool {
    text.len() == ID_LEN && text.bytes().all(|byte| ID_ALPHABET.contains(&byte))
}

/// Formats bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the SHA-256 of `bytes`.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    to_array(digest(&SHA256, bytes).as_ref())
}

/// Returns the SHA-256 of the bytes that `context` was updated with.
pub(crate) fn finish_sha256(context: Context) -> [u8; 32] {
    to_array(context.finish().as_ref())
}

fn to_array(digest: &[u8]) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_maximum() {
        let mut backoff = DoublingBackoff::new(Duration::from_millis(100), Duration::from_secs(10));
        let waits: Vec<_> = (0..10).map(|_| backoff.next().as_millis()).collect();
        assert_eq!(waits[..4], [100, 200, 400, 800]);
        assert_eq!(waits[6..], [6_400, 10_000, 10_000, 10_000]);
        backoff.reset();
        assert_eq!(backoff.next().as_millis(), 100);
    }

    #[test]
    fn only_random_ids_are_recognised() {
        assert!(is_random_id(&random_id()));
        for text in ["", "abcdefghijkl.bad", "abcdefghijk1", "ABCDEFGHIJKL"] {
            assert!(!is_random_id(text), "{text}");
        }
    }
}
