//! How often something may be done: a burst, then evenly. Must not know what.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Turns that are left, and when the next comes.
#[derive(Debug)]
pub(super) struct TokenBucket {
    burst: u32,
    every: Duration,
    left: u32,
    since: Instant,
}

impl TokenBucket {
    /// `burst` turns at once; each comes back after `every`.
    pub(super) fn new(burst: u32, every: Duration) -> Self {
        Self { burst, every, left: burst, since: Instant::now() }
    }

    /// Waits until there is a turn. Cancel-safe.
    pub(super) async fn wait_for_token(&self) {
        if self.left == 0 {
            sleep_until(self.since + self.every).await;
        }
    }

    /// Takes a turn; `false`: there is none.
    pub(super) fn try_take(&mut self) -> bool {
        self.refill();
        let taken = self.left > 0;
        self.left = self.left.saturating_sub(1);
        taken
    }

    /// Whether all turns are there.
    pub(super) fn is_full(&mut self) -> bool {
        self.refill();
        self.left == self.burst
    }

    fn refill(&mut self) {
        let now = Instant::now();
        let gained = now.duration_since(self.since).as_millis() / self.every.as_millis();
        if gained > 0 {
            self.left = self.left.saturating_add(u32::try_from(gained).unwrap_or(u32::MAX)).min(self.burst);
            self.since = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn after_the_burst_each_turn_is_waited_for() {
        let mut pace = TokenBucket::new(16, Duration::from_millis(500));
        let began = Instant::now();
        for _ in 0..16 + 20 {
            pace.wait_for_token().await;
            assert!(pace.try_take());
        }
        assert!(!pace.try_take(), "who does not wait gets none");
        // The clock is the test's own: nothing but the waiting moves it.
        assert_eq!(began.elapsed(), Duration::from_secs(10));
        assert!(!pace.is_full());
        tokio::time::advance(Duration::from_secs(8)).await;
        assert!(pace.is_full());
    }
}
