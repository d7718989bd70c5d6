//! Pauses of a watch of the API server between attempts to reconnect.

use std::time::Duration;

use kube::runtime::utils::Backoff;

/// Bounds of the pause, which doubles after each failed attempt. Up to half of the pause is added at
/// random, so that clients do not all reconnect at the same time.
const MIN_PAUSE: Duration = Duration::from_millis(250);
/// Until the watch has reconnected, the control plane notices no change of the cluster. kube's own
/// backoff grows to 60 s, so a short outage of the API server would last a minute longer here.
const MAX_PAUSE: Duration = Duration::from_secs(4);

/// An iterator over the pauses. It never ends.
#[derive(Debug)]
pub(crate) struct WatchBackoff {
    next: Duration,
}

impl Default for WatchBackoff {
    fn default() -> Self {
        Self { next: MIN_PAUSE }
    }
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.next;
        self.next = (pause * 2).min(MAX_PAUSE);
        Some(pause.mul_f64(1.0 + fastrand::f64() / 2.0))
    }
}

impl Backoff for WatchBackoff {
    fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watch_reconnects_within_seconds_even_after_a_long_outage() {
        let mut backoff = WatchBackoff::default();
        let pauses: Vec<_> = backoff.by_ref().take(100).collect();
        assert!(pauses[0] <= MIN_PAUSE * 3 / 2, "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause <= MAX_PAUSE * 3 / 2), "{pauses:?}");
        backoff.reset();
        assert!(backoff.next().expect("it never ends") <= MIN_PAUSE * 3 / 2);
    }
}
