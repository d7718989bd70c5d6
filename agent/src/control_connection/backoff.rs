//! Delays before connection attempts, which double up to a bound and vary randomly. Pure;
//! randomness is an argument.

use std::time::Duration;

/// Upper bound of the first delay.
const MIN_DELAY: Duration = Duration::from_millis(100);
/// Maximum delay. The agent finds a control plane that is back within this time.
const MAX_DELAY: Duration = Duration::from_secs(10);

/// Counts failed attempts in a row.
#[derive(Debug, Default)]
pub struct ReconnectBackoff {
    failed: u32,
}

impl ReconnectBackoff {
    /// Returns the delay before the next attempt. `chance` is a random number from 0 to 1. It
    /// spreads the attempts of agents that lost the same control plane.
    pub fn next(&mut self, chance: f64) -> Duration {
        let longest = MIN_DELAY.saturating_mul(1 << self.failed.min(16)).min(MAX_DELAY);
        self.failed = self.failed.saturating_add(1);
        longest.mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0)
    }

    /// Resets the delay after a successful attempt.
    pub fn reset(&mut self) {
        self.failed = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_from_100_ms_to_10_s() {
        let mut backoff = ReconnectBackoff::default();
        let waits: Vec<_> = (0..10).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(waits[..4], [100, 200, 400, 800]);
        assert_eq!(waits[9], 10_000);
        backoff.reset();
        assert_eq!(backoff.next(0.0).as_millis(), 50);
    }

    #[test]
    fn failure_count_does_not_overflow() {
        let mut backoff = ReconnectBackoff { failed: u32::MAX - 1 };
        assert_eq!(backoff.next(1.0), MAX_DELAY);
    }
}
