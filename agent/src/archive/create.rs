//! Creates an archive. One thread walks the tree and reads large files, several threads read small
//! files and deflate, one assembles the zip in walk order. The queues between them are bounded. All
//! threads end when the receiver of the archive is dropped.
//!
//! ```text
//!            ┌─ job ─▶ worker ─ result ─┐
//!   walk ────┤                          ▼
//!            └──────── order ───────▶ writer ─ events ─▶ client
//! ```

use std::{
    os::fd::OwnedFd,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::Sender;

use super::{
    compress::{CompressJob, Compressed, run_worker},
    deflate::BLOCK_BYTES,
    dispatch::{JobDispatcher, WriteItem},
    error::{ArchiveError, ArchiveStop},
    hard_links::CountedFiles,
    ignore::IgnoreRules,
    layout::ZipMember,
    manifest::{ArchiveProgress, CreateEvent},
    memory_budget::{Cancelled, MemoryBudget},
    walk::{TreeWalk, WalkStep},
    write::ZipWriter,
};
use crate::files::FileKind;

/// Maximum threads that deflate; fewer on a machine with fewer cores.
const MAX_WORKERS: usize = 4;
/// Limit of uncompressed bytes between walk and writer, at which the walk waits. Their compressed
/// form may take as many bytes again.
const IN_FLIGHT_BYTES: usize = 12 * BLOCK_BYTES;
/// Limit of entries between walk and writer, at which the walk waits.
const QUEUE_ENTRIES: usize = 512;
/// Interval between two progress messages.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// Archives a directory. With `preservation`, further names of a file become links. Blocks until the
/// archive has been sent, the receiver of `events` is dropped, or an error occurs.
pub(super) fn create(
    dir: OwnedFd,
    rules: IgnoreRules,
    preservation: bool,
    events: Sender<CreateEvent>,
    scratch: &Path,
) -> Result<(), ArchiveError> {
    let budget = MemoryBudget::new(IN_FLIGHT_BYTES);
    let total = AtomicU64::new(0);
    let count_dir = dir.try_clone().map_err(super::error::spool_error)?;
    let (jobs, todo) = sync_channel::<CompressJob>(QUEUE_ENTRIES);
    let (order, items) = sync_channel::<WriteItem>(QUEUE_ENTRIES);
    let todo = Arc::new(Mutex::new(todo));
    thread::scope(|scope| {
        let (budget, total) = (&budget, &total);
        for _ in 0..workers() {
            let todo = todo.clone();
            scope.spawn(move || run_worker(&todo, budget));
        }
        // The job queue closes with the last worker, so that the dispatcher cannot wait for a
        // worker that is gone.
        drop(todo);
        let counted = rules.clone();
        scope.spawn(move || sum_sizes(count_dir, counted, preservation, budget, total));
        scope.spawn(move || {
            // The writer notices a failure of this thread, because the items end before `Finished`.
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

fn workers() -> usize {
    thread::available_parallelism().map_or(1, |cores| cores.get().min(MAX_WORKERS))
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
    let mut bytes = 0;
    let mut last_progress = Instant::now();
    let mut streamed: Option<(ZipMember, u64, u64)> = None;
    loop {
        let Ok(item) = items.recv() else { return Err(fault()) };
        // Sparse files compress to so little that seconds could pass before the next send.
        writer.check_receiver()?;
        match item {
            WriteItem::Entry { member, content, entry } => {
                if let Some(member) = member {
                    writer.write_member(&member, &content)?;
                }
                writer.add_entry(entry)?;
            }
            WriteItem::Skipped(skipped) => writer.add_skipped(skipped),
            WriteItem::Small { result, reserved } => {
                let result = result.recv().map_err(|_| fault())?;
                match result {
                    Compressed::Whole { member, content, entry } => {
                        bytes += member.size;
                        writer.write_member(&member, &content)?;
                        match entry {
                            Ok(entry) => writer.add_entry(entry)?,
                            Err(skipped) => writer.add_skipped(skipped),
                        }
                    }
                    Compressed::Skipped(skipped) => writer.add_skipped(skipped),
                    Compressed::Block { .. } => return Err(fault()),
                }
                budget.release(reserved);
            }
            WriteItem::Begin(member) => {
                let expected = member.size;
                let offset = writer.begin_member(&member)?;
                streamed = Some((ZipMember { size: 0, ..member }, offset, expected));
            }
            WriteItem::Block { result, reserved } => {
                let (Ok(Compressed::Block { content, crc, size }), Some((member, _, _))) =
                    (result.recv(), &mut streamed)
                else {
                    return Err(fault());
                };
                writer.write_bytes(&content)?;
                let mut whole = crc32fast::Hasher::new_with_initial_len(member.crc, member.size);
                whole.combine(&crc);
                member.crc = whole.finalize();
                member.size += size;
                member.compressed_size += content.len() as u64;
                bytes += size;
                budget.release(reserved);
            }
            WriteItem::End(entry) => {
                let Some((mut member, offset, expected)) = streamed.take() else { return Err(fault()) };
                member.compressed_size += super::deflate::FINAL_BLOCK.len() as u64;
                writer.end_member(&member, offset, expected)?;
                match entry {
                    Ok(entry) => writer.add_entry(entry)?,
                    Err(skipped) => writer.add_skipped(skipped),
                }
            }
            WriteItem::Finished => return writer.finish(),
        }
        if last_progress.elapsed() >= PROGRESS_INTERVAL {
            last_progress = Instant::now();
            let total_bytes = total.load(Ordering::Relaxed);
            writer.send_progress(ArchiveProgress { entries: writer.entries(), bytes, total_bytes })?;
        }
    }
}

/// Returns the error for a channel that closed without a result, because its thread failed or
/// panicked.
fn fault() -> ArchiveStop {
    ArchiveError::fault("creating an archive").into()
}
