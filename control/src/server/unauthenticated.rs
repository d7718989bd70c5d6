//! Limits the number of unauthenticated connections, and records since when each has been
//! unauthenticated.

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

/// All unauthenticated connections of one listener. Clones share them.
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

/// Whether a connection is authenticated. Every request of the connection carries this as an
/// extension. Dropping it removes the connection from the limiter.
#[derive(Debug)]
pub struct ConnectionState {
    /// Key in the limiter's queue. The connection gets a new key each time it becomes
    /// unauthenticated. Changed under the queue's lock, like `reasons`.
    number: AtomicU64,
    /// Number of authenticated requests so far and of guards that exist. At 0 the connection is
    /// unauthenticated.
    reasons: AtomicUsize,
    unauthenticated: UnauthenticatedLimiter,
    close: CancellationToken,
}

/// Keeps a connection authenticated until it is dropped.
#[derive(Debug)]
pub struct AuthenticatedGuard(Arc<ConnectionState>);

impl UnauthenticatedLimiter {
    /// Waits until another connection may be admitted. It needs a free slot, or an oldest
    /// connection whose grace period is over.
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

    /// Admits a new connection. At the limit it closes the oldest one.
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
    /// Marks the connection as authenticated as long as the guard lives.
    pub fn authenticated_guard(self: &Arc<Self>) -> AuthenticatedGuard {
        self.mark_authenticated();
        AuthenticatedGuard(self.clone())
    }

    /// Marks the connection as authenticated for the rest of its life.
    pub fn mark_authenticated(&self) {
        let mut unauthenticated = self.unauthenticated.lock();
        self.reasons.fetch_add(1, Relaxed);
        unauthenticated.by_age.remove(&self.number.load(Relaxed));
    }

    /// Returns when the connection became unauthenticated. Returns `None` if it is authenticated.
    pub(super) fn unauthenticated_since(&self) -> Option<Instant> {
        self.unauthenticated.lock().by_age.get(&self.number.load(Relaxed)).map(|connection| connection.since)
    }

    /// Returns the token that is cancelled when the connection has to close.
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
    async fn oldest_unauthenticated_connection_is_closed_at_limit() {
        let unauthenticated = UnauthenticatedLimiter::default();
        let known = unauthenticated.admit();
        known.mark_authenticated();
        let crowd: Vec<_> = (0..MAX_UNAUTHENTICATED).map(|_| unauthenticated.admit()).collect();
        let started = Instant::now();
        unauthenticated.wait_for_slot().await;
        assert_eq!(
            started.elapsed(),
            UNAUTHENTICATED_GRACE,
            "no connection is closed within its grace period"
        );
        let next = unauthenticated.admit();
        assert!(crowd[0].close().is_cancelled() && !crowd[1].close().is_cancelled());
        assert!(known.unauthenticated_since().is_none() && next.unauthenticated_since().is_some());
        assert!(!known.close().is_cancelled());
        drop(crowd);
        unauthenticated.wait_for_slot().await;
        assert_eq!(started.elapsed(), UNAUTHENTICATED_GRACE, "closed connections free their slots");
    }

    #[tokio::test(start_paused = true)]
    async fn connection_stays_authenticated_while_guard_lives() {
        let unauthenticated = UnauthenticatedLimiter::default();
        let connection_state = unauthenticated.admit();
        let (first, second) =
            (connection_state.authenticated_guard(), connection_state.authenticated_guard());
        drop(first);
        assert!(connection_state.unauthenticated_since().is_none());
        tokio::time::advance(UNAUTHENTICATED_GRACE).await;
        drop(second);
        assert_eq!(
            connection_state.unauthenticated_since(),
            Some(Instant::now()),
            "dropping the last guard makes it unauthenticated again"
        );
        drop(connection_state);
        assert!(unauthenticated.lock().by_age.is_empty());
    }
}
