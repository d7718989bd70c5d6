//! ServerConnections that have shown no good token yet: few, and not for long.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::limits::{MAX_UNAUTHENTICATED, UNAUTHENTICATED_GRACE};

/// All unauthenticated, oldest first.
#[derive(Debug, Clone, Default)]
pub(super) struct UnauthenticatedLimiter(Arc<Mutex<UnauthenticatedQueue>>);

#[derive(Debug, Default)]
struct UnauthenticatedQueue {
    next: u64,
    by_age: BTreeMap<u64, UnauthenticatedConnection>,
}

#[derive(Debug)]
struct UnauthenticatedConnection {
    since: Instant,
    close: CancellationToken,
}

/// One connection. In the extensions of its requests; gone when the connection is.
#[derive(Debug)]
pub struct ConnectionState {
    /// Among the unauthenticated; a new one each time it becomes one. Changed under their lock, as `reasons` is.
    number: AtomicU64,
    /// Why it is known. When there is none it is a stranger.
    reasons: AtomicUsize,
    unauthenticated: UnauthenticatedLimiter,
    close: CancellationToken,
}

/// A reason why a connection is known; dropped, it is none any more.
#[derive(Debug)]
pub struct AuthenticatedGuard(Arc<ConnectionState>);

impl UnauthenticatedLimiter {
    /// Waits until there is room for one more, or until the oldest has had its time to show a token: then it may be told to go.
    pub(super) async fn wait_for_slot(&self) {
        loop {
            let until = {
                let waiting = self.lock();
                let oldest =
                    waiting.by_age.values().next().filter(|_| waiting.by_age.len() >= MAX_UNAUTHENTICATED);
                let Some(oldest) = oldest else { return };
                oldest.since + UNAUTHENTICATED_GRACE
            };
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }

    /// A new one. If there are too many, the oldest is told to go.
    pub(super) fn admit(&self) -> Arc<ConnectionState> {
        let close = CancellationToken::new();
        let number = self.lock().add(close.clone());
        Arc::new(ConnectionState {
            number: AtomicU64::new(number),
            reasons: AtomicUsize::new(0),
            unauthenticated: self.clone(),
            close,
        })
    }

    fn lock(&self) -> MutexGuard<'_, UnauthenticatedQueue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UnauthenticatedQueue {
    fn add(&mut self, close: CancellationToken) -> u64 {
        if self.by_age.len() >= MAX_UNAUTHENTICATED
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            oldest.close.cancel();
        }
        let number = self.next;
        self.next += 1;
        self.by_age.insert(number, UnauthenticatedConnection { since: Instant::now(), close });
        number
    }
}

impl ConnectionState {
    /// It has shown a good token: it is no stranger as long as the answer is kept.
    pub fn authenticated_guard(self: &Arc<Self>) -> AuthenticatedGuard {
        self.mark_authenticated();
        AuthenticatedGuard(self.clone())
    }

    /// It has shown a good token: it may stay as long as it likes.
    pub fn mark_authenticated(&self) {
        let mut unauthenticated = self.unauthenticated.lock();
        self.reasons.fetch_add(1, Relaxed);
        unauthenticated.by_age.remove(&self.number.load(Relaxed));
    }

    /// Since when it is a stranger, if it is.
    pub(super) fn unauthenticated_since(&self) -> Option<Instant> {
        self.unauthenticated.lock().by_age.get(&self.number.load(Relaxed)).map(|stranger| stranger.since)
    }

    /// Cancelled when it must go.
    pub(super) fn close(&self) -> &CancellationToken {
        &self.close
    }
}

impl Drop for ConnectionState {
    fn drop(&mut self) {
        self.mark_authenticated();
    }
}

impl Drop for AuthenticatedGuard {
    fn drop(&mut self) {
        let mut unauthenticated = self.0.unauthenticated.lock();
        if self.0.reasons.fetch_sub(1, Relaxed) == 1 {
            let number = unauthenticated.add(self.0.close.clone());
            self.0.number.store(number, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_oldest_stranger_makes_room_when_it_has_had_its_time_and_who_has_a_token_stays() {
        let unauthenticated = UnauthenticatedLimiter::default();
        let known = unauthenticated.admit();
        known.mark_authenticated();
        let crowd: Vec<_> = (0..MAX_UNAUTHENTICATED).map(|_| unauthenticated.admit()).collect();
        let came = Instant::now();
        unauthenticated.wait_for_slot().await;
        assert_eq!(came.elapsed(), UNAUTHENTICATED_GRACE, "nobody is sent away who has just come");
        let next = unauthenticated.admit();
        assert!(crowd[0].close().is_cancelled() && !crowd[1].close().is_cancelled());
        assert!(known.unauthenticated_since().is_none() && next.unauthenticated_since().is_some());
        assert!(!known.close().is_cancelled());
        drop(crowd);
        unauthenticated.wait_for_slot().await;
        assert_eq!(came.elapsed(), UNAUTHENTICATED_GRACE, "those that left made room");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_known_as_long_as_there_is_a_reason() {
        let unauthenticated = UnauthenticatedLimiter::default();
        let peer = unauthenticated.admit();
        let (first, second) = (peer.authenticated_guard(), peer.authenticated_guard());
        drop(first);
        assert!(peer.unauthenticated_since().is_none());
        tokio::time::advance(UNAUTHENTICATED_GRACE).await;
        drop(second);
        assert_eq!(peer.unauthenticated_since(), Some(Instant::now()), "it is one again from now on");
        drop(peer);
        assert!(unauthenticated.lock().by_age.is_empty());
    }
}
