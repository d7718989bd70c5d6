//! How far unpacking is: counted by all its threads, told now and then by whichever comes by. It is also where each of them learns that it
//! should stop.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::mpsc::Sender;

use super::{ExtractEvent, error::ArchiveStop, manifest::ArchiveProgress};
use crate::admission::Rejection;

/// Between two messages.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// Counts.
pub(super) struct ExtractProgress<'a> {
    entries: AtomicU64,
    bytes: AtomicU64,
    total_bytes: u64,
    last_report: Mutex<Instant>,
    events: &'a Sender<ExtractEvent>,
    /// Asked with every message: somebody still means it.
    admission: &'a (dyn Fn() -> Result<(), Rejection> + Sync),
}

impl<'a> ExtractProgress<'a> {
    pub(super) fn new(
        total_bytes: u64,
        events: &'a Sender<ExtractEvent>,
        admission: &'a (dyn Fn() -> Result<(), Rejection> + Sync),
    ) -> Self {
        let last_report = Mutex::new(Instant::now());
        Self {
            entries: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            total_bytes,
            last_report,
            events,
            admission,
        }
    }

    /// So much more of its content is written.
    pub(super) fn add_bytes(&self, bytes: usize) -> Result<(), ArchiveStop> {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.report()
    }

    /// An entry is there.
    pub(super) fn add_entry(&self) -> Result<(), ArchiveStop> {
        self.entries.fetch_add(1, Ordering::Relaxed);
        self.report()
    }

    /// Tells, if it is time to; fails if it should not go on.
    pub(super) fn report(&self) -> Result<(), ArchiveStop> {
        if self.events.is_closed() {
            return Err(ArchiveStop::ReceiverDropped);
        }
        // Whoever holds it tells just now.
        let Ok(mut last_report) = self.last_report.try_lock() else { return Ok(()) };
        if last_report.elapsed() < PROGRESS_INTERVAL {
            return Ok(());
        }
        *last_report = Instant::now();
        (self.admission)()?;
        let entries = self.entries.load(Ordering::Relaxed);
        let bytes = self.bytes.load(Ordering::Relaxed);
        let progress = ArchiveProgress { entries, bytes, total_bytes: self.total_bytes };
        // A client that reads nothing misses some, and holds nothing up.
        let _full = self.events.try_send(ExtractEvent::Progress(progress));
        Ok(())
    }
}
