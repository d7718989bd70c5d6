//! Counters over all terminals of the workspace, including ended and removed ones.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

/// Totals for metrics and activity, and the signal that the journal has something to save.
#[derive(Debug)]
pub(super) struct TerminalCounters {
    started_at: Instant,
    bytes: AtomicU64,
    /// Milliseconds after `started_at`, plus 1; 0 before the first output.
    last_output: AtomicU64,
    task_panics: AtomicU64,
    model_panics: AtomicU64,
    /// Notified when a journal needs saving.
    dirty: Notify,
}

impl Default for TerminalCounters {
    fn default() -> Self {
        Self {
            started_at: Instant::now(),
            bytes: AtomicU64::new(0),
            last_output: AtomicU64::new(0),
            task_panics: AtomicU64::new(0),
            model_panics: AtomicU64::new(0),
            dirty: Notify::new(),
        }
    }
}

impl TerminalCounters {
    pub(super) fn output(&self, bytes: u64, at: Instant) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let after = at.duration_since(self.started_at).as_millis() as u64 + 1;
        self.last_output.fetch_max(after, Ordering::Relaxed);
        self.mark_dirty();
    }

    /// Reports that the state of a terminal changed and needs saving.
    pub(super) fn mark_dirty(&self) {
        self.dirty.notify_one();
    }

    /// Waits for a change. A change before the call is not missed; several changes count as one.
    pub(super) async fn wait_dirty(&self) {
        self.dirty.notified().await;
    }

    pub(super) fn task_panicked(&self) {
        self.task_panics.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn model_panicked(&self) {
        self.model_panics.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the total output of all terminals, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Returns the time of the last output of any terminal.
    pub(super) fn last_output(&self) -> Option<Instant> {
        let after = self.last_output.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.started_at + Duration::from_millis(after))
    }

    /// Returns the number of panics of terminal tasks, and of screen models.
    pub(super) fn panics(&self) -> (u64, u64) {
        (self.task_panics.load(Ordering::Relaxed), self.model_panics.load(Ordering::Relaxed))
    }
}
