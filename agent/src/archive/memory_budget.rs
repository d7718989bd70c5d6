//! How much of an archive may be in memory, and the end that reaches all its threads.

use std::{
    sync::{Condvar, Mutex, MutexGuard},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::metadata;

/// A change within the kernel's tick (10 ms at most) after another leaves the same times behind: what changed more recently than this
/// is looked at only once the tick is over, so that a later change shows.
const MTIME_GRANULARITY: Duration = Duration::from_millis(20);

/// The archive was given up; everybody stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cancelled;

/// Shared by the threads of one archive.
#[derive(Debug)]
pub(super) struct MemoryBudget {
    state: Mutex<BudgetState>,
    changed: Condvar,
}

#[derive(Debug)]
struct BudgetState {
    /// Bytes.
    free: usize,
    cancelled: bool,
}

impl MemoryBudget {
    /// Room for so many bytes.
    pub(super) fn new(bytes: usize) -> Self {
        Self { state: Mutex::new(BudgetState { free: bytes, cancelled: false }), changed: Condvar::new() }
    }

    /// Waits for room; who takes more than there ever is waits for the end.
    pub(super) fn reserve(&self, bytes: usize) -> Result<(), Cancelled> {
        let full = |state: &mut BudgetState| !state.cancelled && state.free < bytes;
        let mut state = self.changed.wait_while(self.lock(), full).unwrap_or_else(|e| e.into_inner());
        if state.cancelled {
            return Err(Cancelled);
        }
        state.free -= bytes;
        Ok(())
    }

    /// Gives room back.
    pub(super) fn release(&self, bytes: usize) {
        self.lock().free += bytes;
        self.changed.notify_all();
    }

    /// Whoever waits or comes is turned away from now on.
    pub(super) fn cancel(&self) {
        self.lock().cancelled = true;
        self.changed.notify_all();
    }

    /// Whether it has ended.
    pub(super) fn check_cancelled(&self) -> Result<(), Cancelled> {
        if self.lock().cancelled { Err(Cancelled) } else { Ok(()) }
    }

    /// Waits until a later change would show in what changed `at` this time; whether that took time.
    pub(super) fn wait_mtime_granularity(&self, at: metadata::UnixTime) -> Result<bool, Cancelled> {
        let Some(wait) = granularity_left(at, SystemTime::now()) else { return Ok(false) };
        let until = Instant::now() + wait;
        let mut state = self.lock();
        while !state.cancelled {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(true);
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(|e| e.into_inner()).0;
        }
        Err(Cancelled)
    }

    fn lock(&self) -> MutexGuard<'_, BudgetState> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// How long what changed `at` is too fresh to be looked at. What lies ahead (a clock was set back) is not: a change would show.
fn granularity_left(at: metadata::UnixTime, now: SystemTime) -> Option<Duration> {
    let at = UNIX_EPOCH + Duration::new(u64::try_from(at.0).ok()?, at.1);
    MTIME_GRANULARITY.checked_sub(now.duration_since(at).ok()?).filter(|wait| !wait.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_just_changed_is_too_fresh() {
        let now = UNIX_EPOCH + Duration::new(1_000, 500_000_000);
        assert_eq!(granularity_left((1_000, 495_000_000), now), Some(Duration::from_millis(15)));
        for settled in [(1_000, 480_000_000), (999, 500_000_000), (1_001, 0), (-5, 0)] {
            assert_eq!(granularity_left(settled, now), None, "{settled:?}");
        }
    }

    #[test]
    fn the_end_reaches_who_waits() {
        let budget = MemoryBudget::new(10);
        budget.reserve(8).unwrap();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| budget.reserve(3));
            budget.cancel();
            assert_eq!(waits.join().unwrap(), Err(Cancelled));
        });
        assert_eq!(budget.reserve(1), Err(Cancelled));
    }

    #[test]
    fn room_that_is_given_back_lets_the_next_one_in() {
        let budget = MemoryBudget::new(10);
        budget.reserve(8).unwrap();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| budget.reserve(3));
            budget.release(8);
            assert_eq!(waits.join().unwrap(), Ok(()));
        });
    }
}
