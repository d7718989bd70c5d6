//! Progress of an extraction, to which all threads add. The first thread that finds a report due
//! sends it. A thread that gets an error must stop.

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

/// Interval between two progress messages.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

pub(super) struct ExtractProgress<'a> {
    entries: AtomicU64,
    bytes: AtomicU64,
    total_bytes: u64,
    last_report: Mutex<Instant>,
    events: &'a Sender<ExtractEvent>,
    /// Called with every report, because the admission gate may have rejected the extraction
    /// meanwhile.
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

    /// Adds bytes of content that were written.
    pub(super) fn add_bytes(&self, bytes: usize) -> Result<(), ArchiveStop> {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.report()
    }

    /// Adds an entry that was written.
    pub(super) fn add_entry(&self) -> Result<(), ArchiveStop> {
        self.entries.fetch_add(1, Ordering::Relaxed);
        self.report()
    }

    /// Sends a progress message if one is due. Returns an error if the extraction must stop.
    pub(super) fn report(&self) -> Result<(), ArchiveStop> {
        if self.events.is_closed() {
            return Err(ArchiveStop::ReceiverDropped);
        }
        // Another thread holds the lock and reports right now.
        let Ok(mut last_report) = self.last_report.try_lock() else { return Ok(()) };
        if last_report.elapsed() < PROGRESS_INTERVAL {
            return Ok(());
        }
        *last_report = Instant::now();
        (self.admission)()?;
        let entries = self.entries.load(Ordering::Relaxed);
        let bytes = self.bytes.load(Ordering::Relaxed);
        let progress = ArchiveProgress { entries, bytes, total_bytes: self.total_bytes };
        // A client that reads slowly misses reports instead of blocking the extraction.
        let _full = self.events.try_send(ExtractEvent::Progress(progress));
        Ok(())
    }
}
