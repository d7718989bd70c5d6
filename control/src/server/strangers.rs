//! Connections that have shown no good token yet: few, and not for long.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::limits::{MAX_STRANGERS, STRANGER_GRACE};

/// All strangers, oldest first.
#[derive(Debug, Clone, Default)]
pub(super) struct Strangers(Arc<Mutex<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    by_age: BTreeMap<u64, Stranger>,
}

#[derive(Debug)]
struct Stranger {
    since: Instant,
    close: CancellationToken,
}

/// One connection. In the extensions of its requests; gone when the connection is.
#[derive(Debug)]
pub struct Peer {
    /// Among the strangers; a new one each time it becomes one. Changed under their lock, as `reasons` is.
    number: AtomicU64,
    /// Why it is known. When there is none it is a stranger.
    reasons: AtomicUsize,
    strangers: Strangers,
    close: CancellationToken,
}

/// A reason why a connection is known; dropped, it is none any more.
#[derive(Debug)]
pub struct Known(Arc<Peer>);

impl Strangers {
    /// Waits until there is room for one more, or until the oldest has had its time to show a token: then it may be told to go.
    pub(super) async fn room(&self) {
        loop {
            let until = {
                let waiting = self.lock();
                let oldest = waiting.by_age.values().next().filter(|_| waiting.by_age.len() >= MAX_STRANGERS);
                let Some(oldest) = oldest else { return };
                oldest.since + STRANGER_GRACE
            };
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }

    /// A new one. If there are too many, the oldest is told to go.
    pub(super) fn admit(&self) -> Arc<Peer> {
        let close = CancellationToken::new();
        let number = self.lock().add(close.clone());
        Arc::new(Peer {
            number: AtomicU64::new(number),
            reasons: AtomicUsize::new(0),
            strangers: self.clone(),
            close,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn add(&mut self, close: CancellationToken) -> u64 {
        if self.by_age.len() >= MAX_STRANGERS
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            oldest.close.cancel();
        }
        let number = self.next;
        self.next += 1;
        self.by_age.insert(number, Stranger { since: Instant::now(), close });
        number
    }
}

impl Peer {
    /// It has shown a good token: it is no stranger as long as the answer is kept.
    pub fn know(self: &Arc<Self>) -> Known {
        self.introduce();
        Known(self.clone())
    }

    /// It has shown a good token: it may stay as long as it likes.
    pub fn introduce(&self) {
        let mut strangers = self.strangers.lock();
        self.reasons.fetch_add(1, Relaxed);
        strangers.by_age.remove(&self.number.load(Relaxed));
    }

    /// Since when it is a stranger, if it is.
    pub(super) fn stranger_since(&self) -> Option<Instant> {
        self.strangers.lock().by_age.get(&self.number.load(Relaxed)).map(|stranger| stranger.since)
    }

    /// Cancelled when it must go.
    pub(super) fn close(&self) -> &CancellationToken {
        &self.close
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.introduce();
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        let mut strangers = self.0.strangers.lock();
        if self.0.reasons.fetch_sub(1, Relaxed) == 1 {
            let number = strangers.add(self.0.close.clone());
            self.0.number.store(number, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_oldest_stranger_makes_room_when_it_has_had_its_time_and_who_has_a_token_stays() {
        let strangers = Strangers::default();
        let known = strangers.admit();
        known.introduce();
        let crowd: Vec<_> = (0..MAX_STRANGERS).map(|_| strangers.admit()).collect();
        let came = Instant::now();
        strangers.room().await;
        assert_eq!(came.elapsed(), STRANGER_GRACE, "nobody is sent away who has just come");
        let next = strangers.admit();
        assert!(crowd[0].close().is_cancelled() && !crowd[1].close().is_cancelled());
        assert!(known.stranger_since().is_none() && next.stranger_since().is_some());
        assert!(!known.close().is_cancelled());
        drop(crowd);
        strangers.room().await;
        assert_eq!(came.elapsed(), STRANGER_GRACE, "those that left made room");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_known_as_long_as_there_is_a_reason() {
        let strangers = Strangers::default();
        let peer = strangers.admit();
        let (first, second) = (peer.know(), peer.know());
        drop(first);
        assert!(peer.stranger_since().is_none());
        tokio::time::advance(STRANGER_GRACE).await;
        drop(second);
        assert_eq!(peer.stranger_since(), Some(Instant::now()), "it is one again from now on");
        drop(peer);
        assert!(strangers.lock().by_age.is_empty());
    }
}
