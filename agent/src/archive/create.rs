//! Creates an archive. One thread walks the tree and reads large files, several threads read small
//! files and deflate, one assembles the zip in walk order. The queues between them are bounded. All
//! threads end when the receiver of the archive is dropped.
//!
//! ```text
//!            ┌─ job ─▶ worker ─ result ─┐
//!   walk ────┤                          ▼
//!            └──────── order ───────▶ writer ─ events ─▶ client
//! ```

mod ignore;
mod jobs;
mod walk;
mod writer;

use std::{
    collections::HashSet,
    ffi::OsString,
    fs::File,
    io::Read,
    os::fd::OwnedFd,
    path::Path,
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use podling_archive::{BLOCK_BYTES, UnixTime, ZipMember};
use rustix::io::Errno;
use tokio::sync::mpsc::Sender;

pub use self::ignore::{MAX_PATTERN_BYTES, MAX_PATTERNS};
use self::{
    ignore::IgnoreRules,
    jobs::{JobDispatcher, run_worker},
    walk::TreeWalk,
    writer::ZipWriter,
};
use super::{
    ArchiveError, ArchiveStop, ArchivedEntry, CreateEvent, CreateOptions, EntryMetadata, FileIdentity,
    PROGRESS_INTERVAL, UnarchivedEntry, spool_error, worker_count,
};
use crate::{
    files::{FileError, FileKind, errno},
    util::lock,
};

/// Limit of uncompressed bytes between walk and writer, at which the walk waits. Their compressed
/// form may take as many bytes again.
const IN_FLIGHT_BYTES: usize = 12 * BLOCK_BYTES;
/// Limit of entries between walk and writer, at which the walk waits.
const QUEUE_ENTRIES: usize = 512;

/// Bytes of the first names that are remembered. The names of further files are then archived as
/// files of their own.
const MAX_NAME_BYTES: usize = 16 * 1024 * 1024;
/// Bytes that each remembered name takes on top of its length.
const NAME_OVERHEAD_BYTES: usize = 64;

/// Reason for skipping an entry that changed while it was read.
const CHANGED: &str = "it changed while it was read";

/// Twice the granularity of file timestamps (a kernel tick, 10 ms at most). Two changes within one
/// tick have the same timestamp. A file that changed more recently is read only after this time, so
/// that a later change shows in its timestamp.
const MTIME_GRANULARITY: Duration = Duration::from_millis(20);

/// Creation of one archive.
#[derive(Debug)]
pub(super) struct Creation {
    rules: IgnoreRules,
    /// Whether further names of a file become links.
    preservation: bool,
}

impl Creation {
    /// Checks the options of a request.
    pub(super) fn new(options: &CreateOptions) -> Result<Self, FileError> {
        let CreateOptions { preservation, ref ignore, ignore_files } = *options;
        if preservation && (ignore_files || !ignore.is_empty()) {
            let allowed = "false if ignore rules are given";
            return Err(FileError::BadField { field: "preservation", allowed });
        }
        Ok(Self { rules: IgnoreRules::new(ignore, ignore_files)?, preservation })
    }

    /// Archives the directory `dir`. Blocks until the archive has been sent, the receiver of
    /// `events` is dropped, or an error occurs.
    pub(super) fn run(
        self,
        dir: OwnedFd,
        events: Sender<CreateEvent>,
        scratch: &Path,
    ) -> Result<(), ArchiveError> {
        let Self { rules, preservation } = self;
        let budget = MemoryBudget::new(IN_FLIGHT_BYTES);
        let total = AtomicU64::new(0);
        let count_dir = dir.try_clone().map_err(spool_error)?;
        let (jobs, todo) = sync_channel::<CompressJob>(QUEUE_ENTRIES);
        let (order, items) = sync_channel::<WriteItem>(QUEUE_ENTRIES);
        let todo = Arc::new(Mutex::new(todo));
        thread::scope(|scope| {
            let (budget, total) = (&budget, &total);
            for _ in 0..worker_count() {
                let todo = todo.clone();
                scope.spawn(move || run_worker(&todo, budget));
            }
            // The job queue closes with the last worker, so that the dispatcher cannot wait for a
            // worker that is gone.
            drop(todo);
            let counted = rules.clone();
            scope.spawn(move || sum_sizes(count_dir, counted, preservation, budget, total));
            scope.spawn(move || {
                // The writer notices a failure of this thread, because the items end before
                // `Finished`.
                let _ended = JobDispatcher::new(budget, jobs, order, preservation).walk(dir, rules);
            });
            let written = write_items(items, budget, total, ZipWriter::new(events, scratch));
            budget.cancel();
            match written {
                Ok(()) | Err(ArchiveStop::ReceiverDropped) => Ok(()),
                Err(ArchiveStop::Failed(error)) => Err(error),
            }
        })
    }
}

/// Adds up the sizes of all files, as the total of the progress messages. With `preservation`, each
/// file counts once.
fn sum_sizes(dir: OwnedFd, rules: IgnoreRules, preservation: bool, budget: &MemoryBudget, total: &AtomicU64) {
    let Ok(mut walk) = TreeWalk::new(dir, rules, budget) else { return };
    let (mut bytes, mut counted) = (0, CountedFiles::default());
    loop {
        match walk.next() {
            Ok(Some(WalkStep::Found(found)))
                if found.metadata.kind == FileKind::File
                    && (!preservation || counted.is_new(&found.metadata)) =>
            {
                bytes += found.metadata.size
            }
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(Cancelled) => return,
        }
    }
    total.store(bytes, Ordering::Relaxed);
}

/// Runs the writer, which takes the items in walk order and assembles the zip.
fn write_items(
    items: Receiver<WriteItem>,
    budget: &MemoryBudget,
    total: &AtomicU64,
    mut writer: ZipWriter<'_>,
) -> Result<(), ArchiveStop> {
    let (mut bytes, mut last_progress) = (0, Instant::now());
    loop {
        let Ok(item) = items.recv() else { return Err(fault()) };
        // Sparse files compress to so little that seconds could pass before the next send.
        writer.check_receiver()?;
        match item {
            WriteItem::Entry { member, content, entry } => {
                if let Some(member) = member {
                    writer.write_member(&member, &content)?;
                }
                writer.add_entry(Ok(entry))?;
            }
            WriteItem::Skipped(skipped) => writer.add_entry(Err(skipped))?,
            WriteItem::Compressed { result, reserved } => {
                match result.recv().map_err(|_| fault())? {
                    Compressed::Whole { member, content, entry } => {
                        bytes += member.size();
                        writer.write_member(&member, &content)?;
                        writer.add_entry(entry)?;
                    }
                    Compressed::Skipped(skipped) => writer.add_entry(Err(skipped))?,
                    Compressed::Block { content, crc, size } => {
                        writer.write_block(&content, &crc, size)?;
                        bytes += size;
                    }
                }
                budget.release(reserved);
            }
            WriteItem::Begin(member) => writer.begin_member(member)?,
            WriteItem::End(entry) => {
                writer.end_member()?;
                writer.add_entry(entry)?;
            }
            WriteItem::Finished => return writer.finish(),
        }
        if last_progress.elapsed() >= PROGRESS_INTERVAL {
            last_progress = Instant::now();
            writer.send_progress(bytes, total.load(Ordering::Relaxed))?;
        }
    }
}

/// Returns the error for a channel that closed without a result, because its thread failed or
/// panicked.
fn fault() -> ArchiveStop {
    ArchiveError::fault("creating an archive").into()
}

/// An entry with the directory through which it is opened.
#[derive(Debug)]
struct WalkEntry {
    /// Relative to the start of the walk.
    path: Vec<u8>,
    dir: Arc<OwnedFd>,
    name: OsString,
    metadata: EntryMetadata,
}

#[derive(Debug)]
enum WalkStep {
    Found(WalkEntry),
    Skipped(UnarchivedEntry),
}

/// The next step of the writer.
#[derive(Debug)]
enum WriteItem {
    /// A directory or link, or an entry that only the manifest lists (`member` is `None`).
    Entry {
        member: Option<ZipMember>,
        content: Vec<u8>,
        entry: ArchivedEntry,
    },
    Skipped(UnarchivedEntry),
    /// A small file, or a block of the large file that has begun.
    Compressed {
        result: Receiver<Compressed>,
        reserved: usize,
    },
    /// A large file begins.
    Begin(ZipMember),
    /// A large file ends. An error if the file could not be read or changed meanwhile.
    End(Result<ArchivedEntry, UnarchivedEntry>),
    Finished,
}

/// Input to deflate and the channel for its result.
#[derive(Debug)]
enum CompressJob {
    /// A file of one block at most, not yet opened.
    Small(WalkEntry, SyncSender<Compressed>),
    /// A block of a large file.
    Block(Vec<u8>, SyncSender<Compressed>),
}

/// Result of a [`CompressJob`].
#[derive(Debug)]
enum Compressed {
    Whole {
        member: ZipMember,
        content: Vec<u8>,
        /// An error if the file changed while it was read.
        entry: Result<ArchivedEntry, UnarchivedEntry>,
    },
    Skipped(UnarchivedEntry),
    Block {
        content: Vec<u8>,
        crc: crc32fast::Hasher,
        size: u64,
    },
}

/// The files with several names that were counted already.
#[derive(Debug, Default)]
struct CountedFiles(HashSet<FileIdentity>);

impl CountedFiles {
    /// Returns whether the content of this file counts, because no other name of it was counted.
    fn is_new(&mut self, metadata: &EntryMetadata) -> bool {
        let max_files = MAX_NAME_BYTES / NAME_OVERHEAD_BYTES;
        metadata.links < 2 || self.0.len() >= max_files || self.0.insert(metadata.identity())
    }
}

/// Reason why an entry is not archived.
enum EntryRejection {
    Cancelled,
    Skipped(String),
}

impl From<Errno> for EntryRejection {
    fn from(errno: Errno) -> Self {
        Self::Skipped(skip_reason(errno))
    }
}

impl From<Cancelled> for EntryRejection {
    fn from(_: Cancelled) -> Self {
        Self::Cancelled
    }
}

impl From<&str> for EntryRejection {
    fn from(reason: &str) -> Self {
        Self::Skipped(reason.to_owned())
    }
}

/// Renders an error as a reason for skipping, for people.
fn skip_reason(errno: Errno) -> String {
    match errno {
        Errno::ACCESS | Errno::PERM => "permission denied".to_owned(),
        // The entry was listed a moment ago, or had another kind.
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO => CHANGED.to_owned(),
        errno => errno.to_string(),
    }
}

/// Reads up to `most` bytes in total, or fewer at the end of the file.
fn read_up_to(mut file: &File, block: &mut Vec<u8>, most: usize) -> Result<(), Errno> {
    block.clear();
    block.reserve_exact(most);
    let read = file.by_ref().take(most as u64).read_to_end(block);
    read.map(drop).map_err(|error| errno(&error))
}

/// The archive was cancelled; the thread must stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cancelled;

/// Bytes of content that the threads of one archive may hold together.
#[derive(Debug)]
struct MemoryBudget {
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
    fn new(bytes: usize) -> Self {
        Self { state: Mutex::new(BudgetState { free: bytes, cancelled: false }), changed: Condvar::new() }
    }

    /// Waits until `bytes` are free and reserves them. A request for more than the whole budget
    /// waits until it is cancelled.
    fn reserve(&self, bytes: usize) -> Result<(), Cancelled> {
        let full = |state: &mut BudgetState| !state.cancelled && state.free < bytes;
        let mut state = self.changed.wait_while(self.lock(), full).unwrap_or_else(|e| e.into_inner());
        if state.cancelled {
            return Err(Cancelled);
        }
        state.free -= bytes;
        Ok(())
    }

    /// Releases bytes that were reserved.
    fn release(&self, bytes: usize) {
        self.lock().free += bytes;
        self.changed.notify_all();
    }

    /// Fails all present and future waits with [`Cancelled`].
    fn cancel(&self) {
        self.lock().cancelled = true;
        self.changed.notify_all();
    }

    fn check_cancelled(&self) -> Result<(), Cancelled> {
        if self.lock().cancelled { Err(Cancelled) } else { Ok(()) }
    }

    /// Waits until a further change of a file, which was last changed at `at`, would show in its
    /// timestamp. Returns whether a wait was needed.
    fn wait_mtime_granularity(&self, at: UnixTime) -> Result<bool, Cancelled> {
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
        lock(&self.state)
    }
}

/// Returns the time until a further change would show. `None` if no wait is needed. A timestamp
/// ahead of `now`, after the clock was set back, needs no wait.
fn granularity_left(at: UnixTime, now: SystemTime) -> Option<Duration> {
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
