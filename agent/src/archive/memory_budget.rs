//! Memory budget of an archive, and the cancellation of its threads.

use std::{
    sync::{Condvar, Mutex, MutexGuard},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::metadata;

/// Twice the granularity of file timestamps (a kernel tick, 10 ms at most). Two changes within one
/// tick have the same timestamp. A file that changed more recently is read only after this time, so
/// that a later change shows in its timestamp.
const MTIME_GRANULARITY: Duration = Duration::from_millis(20);

/// The archive was cancelled; the thread must stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cancelled;

/// Bytes of content that the threads of one archive may hold together.
#[derive(Debug)]
pub(super) struct MemoryBudget {
    state: Mutex<BudgetState>,
    changed: Condvar,
}

#[derive(Debug)]
struct BudgetState {
    /// Bytes that can be reserved.
    free: usize,
    cancelled: bool,
}

impl MemoryBudget {
    pub(super) fn new(bytes: usize) -> Self {
        Self { state: Mutex::new(BudgetState { free: bytes, cancelled: false }), changed: Condvar::new() }
    }

    /// Waits until `bytes` are free and reserves them. A request for more than the whole budget
    /// waits until it is cancelled.
    pub(super) fn reserve(&self, bytes: usize) -> Result<(), Cancelled> {
        let full = |state: &mut BudgetState| !state.cancelled && state.free < bytes;
        let mut state = self.changed.wait_while(self.lock(), full).unwrap_or_else(|e| e.into_inner());
        if state.cancelled {
            return Err(Cancelled);
        }
        state.free -= bytes;
        Ok(())
    }

    /// Releases bytes that were reserved.
    pub(super) fn release(&self, bytes: usize) {
        self.lock().free += bytes;
        self.changed.notify_all();
    }

    /// Fails all present and future waits with [`Cancelled`].
    pub(super) fn cancel(&self) {
        self.lock().cancelled = true;
        self.changed.notify_all();
    }

    pub(super) fn check_cancelled(&self) -> Result<(), Cancelled> {
        if self.lock().cancelled { Err(Cancelled) } else { Ok(()) }
    }

    /// Waits until a further change of a file, which was last changed at `at`, would show in its
    /// timestamp. Returns whether a wait was needed.
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

/// Returns the time until a further change would show. `None` if no wait is needed. A timestamp
/// ahead of `now`, after the clock was set back, needs no wait.
fn granularity_left(at: metadata::UnixTime, now: SystemTime) -> Option<Duration> {
    let at = UNIX_EPOCH + Duration::new(u64::try_from(at.0).ok()?, at.1);
    MTIME_GRANULARITY.checked_sub(now.duration_since(at).ok()?).filter(|wait| !wait.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_recent_changes_require_a_wait() {
        let now = UNIX_EPOCH + Duration::new(1_000, 500_000_000);
        assert_eq!(granularity_left((1_000, 495_000_000), now), Some(Duration::from_millis(15)));
        for settled in [(1_000, 480_000_000), (999, 500_000_000), (1_001, 0), (-5, 0)] {
            assert_eq!(granularity_left(settled, now), None, "{settled:?}");
        }
    }

    #[test]
    fn cancel_wakes_waiting_reservation() {
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
    fn released_bytes_admit_next_reservation() {
        let budget = MemoryBudget::new(10);
        budget.reserve(8).unwrap();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| budget.reserve(3));
            budget.release(8);
            assert_eq!(waits.join().unwrap(), Ok(()));
        });
    }
}
