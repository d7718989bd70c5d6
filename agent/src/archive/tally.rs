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

use super::{ExtractEvent, error::Stopped, manifest::ArchiveProgress};
use crate::admission::Rejection;

/// Between two messages.
const TELL_EVERY: Duration = Duration::from_millis(250);

/// Counts.
pub(super) struct Tally<'a> {
    entries: AtomicU64,
    bytes: AtomicU64,
    total_bytes: u64,
    told: Mutex<Instant>,
    events: &'a Sender<ExtractEvent>,
    /// Asked with every message: somebody still means it.
    door: &'a (dyn Fn() -> Result<(), Rejection> + Sync),
}

impl<'a> Tally<'a> {
    pub(super) fn new(
        total_bytes: u64,
        events: &'a Sender<ExtractEvent>,
        door: &'a (dyn Fn() -> Result<(), Rejection> + Sync),
    ) -> Self {
        let told = Mutex::new(Instant::now());
        Self { entries: AtomicU64::new(0), bytes: AtomicU64::new(0), total_bytes, told, events, door }
    }

    /// So much more of its content is written.
    pub(super) fn bytes(&self, bytes: usize) -> Result<(), Stopped> {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.tell()
    }

    /// An entry is there.
    pub(super) fn entry(&self) -> Result<(), Stopped> {
        self.entries.fetch_add(1, Ordering::Relaxed);
        self.tell()
    }

    /// Tells, if it is time to; fails if it should not go on.
    pub(super) fn tell(&self) -> Result<(), Stopped> {
        if self.events.is_closed() {
            return Err(Stopped::Gone);
        }
        // Whoever holds it tells just now.
        let Ok(mut told) = self.told.try_lock() else { return Ok(()) };
        if told.elapsed() < TELL_EVERY {
            return Ok(());
        }
        *told = Instant::now();
        (self.door)()?;
        let entries = self.entries.load(Ordering::Relaxed);
        let bytes = self.bytes.load(Ordering::Relaxed);
        let progress = ArchiveProgress { entries, bytes, total_bytes: self.total_bytes };
        // A client that reads nothing misses some, and holds nothing up.
        let _full = self.events.try_send(ExtractEvent::Progress(progress));
        Ok(())
    }
}
