//! How long to wait before the next try: doubling, jittered, bounded. Pure; chance is an argument.

use std::time::Duration;

/// The first wait at most.
const FIRST: Duration = Duration::from_millis(100);
/// No wait is longer: a control plane that is back is found within this time.
const LONGEST: Duration = Duration::from_secs(10);

/// Counts tries that failed.
#[derive(Debug, Default)]
pub struct ReconnectBackoff {
    failed: u32,
}

impl ReconnectBackoff {
    /// The wait before the next try. `chance` is in 0..1: agents that lost the same control plane come back spread out.
    pub fn next(&mut self, chance: f64) -> Duration {
        let longest = FIRST.saturating_mul(1 << self.failed.min(16)).min(LONGEST);
        self.failed = self.failed.saturating_add(1);
        longest.mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0)
    }

    /// A try went well.
    pub fn reset(&mut self) {
        self.failed = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_from_a_tenth_of_a_second_to_ten() {
        let mut backoff = ReconnectBackoff::default();
        let waits: Vec<_> = (0..10).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(waits[..4], [100, 200, 400, 800]);
        assert_eq!(waits[9], 10_000);
        backoff.reset();
        assert_eq!(backoff.next(0.0).as_millis(), 50);
    }

    #[test]
    fn it_goes_on_for_ever() {
        let mut backoff = ReconnectBackoff { failed: u32::MAX - 1 };
        assert_eq!(backoff.next(1.0), LONGEST);
    }
}
