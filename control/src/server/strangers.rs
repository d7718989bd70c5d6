//! Connections that have shown no good token yet: few, and not for long.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

/// All strangers, oldest first.
#[derive(Debug, Clone, Default)]
pub(super) struct Strangers(Arc<Mutex<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    by_age: BTreeMap<u64, CancellationToken>,
}

/// One connection. In the extensions of its requests; gone when the connection is.
#[derive(Debug)]
pub struct Peer {
    number: u64,
    strangers: Strangers,
    close: CancellationToken,
}

impl Strangers {
    /// A new one. If there are `max`, the oldest is told to go.
    pub(super) fn admit(&self, max: usize) -> Arc<Peer> {
        let close = CancellationToken::new();
        let mut waiting = self.lock();
        let number = waiting.next;
        waiting.next += 1;
        if waiting.by_age.len() >= max
            && let Some((_, oldest)) = waiting.by_age.pop_first()
        {
            oldest.cancel();
        }
        waiting.by_age.insert(number, close.clone());
        Arc::new(Peer { number, strangers: self.clone(), close })
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peer {
    /// It has shown a good token: it may stay.
    pub fn introduce(&self) {
        self.strangers.lock().by_age.remove(&self.number);
    }

    /// Whether it has shown none yet.
    pub(super) fn is_stranger(&self) -> bool {
        self.strangers.lock().by_age.contains_key(&self.number)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_stranger_makes_room_and_who_has_a_token_stays() {
        let strangers = Strangers::default();
        let known = strangers.admit(2);
        known.introduce();
        let (first, second) = (strangers.admit(2), strangers.admit(2));
        let third = strangers.admit(2);
        assert!(first.close().is_cancelled());
        assert!(!known.close().is_cancelled() && !second.close().is_cancelled());
        assert!(third.is_stranger() && !known.is_stranger());
        drop(second);
        strangers.admit(2);
        assert!(!third.close().is_cancelled(), "one that left made room");
    }
}
