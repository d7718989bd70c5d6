//! TerminalCounters: what is counted over all terminals of the workspace, ended ones included. Must not know any of them.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

/// The counts.
#[derive(Debug)]
pub(super) struct TerminalCounters {
    started_at: Instant,
    bytes: AtomicU64,
    /// Milliseconds after `started_at`, plus 1; 0: never.
    last_output: AtomicU64,
    task_panics: AtomicU64,
    model_panics: AtomicU64,
    /// Ticks when there is something new to keep.
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

    /// Something has changed that is worth keeping.
    pub(super) fn mark_dirty(&self) {
        self.dirty.notify_one();
    }

    /// Waits for such a change; one that came before is not missed.
    pub(super) async fn wait_dirty(&self) {
        self.dirty.notified().await;
    }

    pub(super) fn task_panicked(&self) {
        self.task_panics.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn model_panicked(&self) {
        self.model_panics.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes that were printed.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// When anything was last printed.
    pub(super) fn last_output(&self) -> Option<Instant> {
        let after = self.last_output.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.started_at + Duration::from_millis(after))
    }

    /// Of tasks, and of screen models.
    pub(super) fn panics(&self) -> (u64, u64) {
        (self.task_panics.load(Ordering::Relaxed), self.model_panics.load(Ordering::Relaxed))
    }
}
