//! A token bucket. It allows a burst of messages, and then one message per interval.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

#[derive(Debug)]
pub(super) struct TokenBucket {
    burst: u32,
    every: Duration,
    left: u32,
    since: Instant,
}

impl TokenBucket {
    /// Creates a full bucket of `burst` tokens. It regains one token per interval `every`.
    pub(super) fn new(burst: u32, every: Duration) -> Self {
        Self { burst, every, left: burst, since: Instant::now() }
    }

    /// Waits until a token is available, without taking it. Cancel-safe.
    pub(super) async fn wait_for_token(&self) {
        if self.left == 0 {
            sleep_until(self.since + self.every).await;
        }
    }

    /// Takes a token. Returns `false` if none is available.
    pub(super) fn try_take(&mut self) -> bool {
        self.refill();
        let taken = self.left > 0;
        self.left = self.left.saturating_sub(1);
        taken
    }

    /// Returns whether the bucket holds its whole burst.
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
    async fn bucket_after_burst_gains_one_token_per_interval() {
        let mut bucket = TokenBucket::new(16, Duration::from_millis(500));
        let began = Instant::now();
        for _ in 0..16 + 20 {
            bucket.wait_for_token().await;
            assert!(bucket.try_take());
        }
        assert!(!bucket.try_take(), "the bucket is empty without a wait");
        // The clock is paused, so only the waits above advance it.
        assert_eq!(began.elapsed(), Duration::from_secs(10));
        assert!(!bucket.is_full());
        tokio::time::advance(Duration::from_secs(8)).await;
        assert!(bucket.is_full());
    }
}
