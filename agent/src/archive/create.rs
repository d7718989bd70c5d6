//! Makes an archive. One thread walks and reads large files, some deflate (and read small files), one puts the zip together in the
//! order of the walk; what is between them is bounded, and when nobody takes the archive any more all of them end.
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
    deflate::BLOCK,
    error::{ArchiveError, Stopped},
    gate::{Ended, Gate},
    ignore::Rules,
    layout::Member,
    manifest::{ArchiveProgress, CreateEvent},
    order::{Item, Walker},
    walk::{Step, Walk},
    work::{Job, Packed, work},
    write::Writer,
};
use crate::files::FileKind;

/// Threads that deflate: as many as there are cores, up to this.
const MAX_WORKERS: usize = 4;
/// Bytes of content between the walk and the writer, as much again when it is deflated; then the walk waits.
const IN_FLIGHT: usize = 12 * BLOCK;
/// Entries between them; then the walk waits.
const QUEUE: usize = 512;
/// Between two messages about the progress.
const TELL_EVERY: Duration = Duration::from_millis(250);

/// Makes an archive of a folder. Blocks until it is taken, given up or failed.
pub(super) fn create(
    dir: OwnedFd,
    rules: Rules,
    events: Sender<CreateEvent>,
    scratch: &Path,
) -> Result<(), ArchiveError> {
    let gate = Gate::new(IN_FLIGHT);
    let total = AtomicU64::new(0);
    let count_dir = dir.try_clone().map_err(super::error::spooling)?;
    let (jobs, todo) = sync_channel::<Job>(QUEUE);
    let (order, items) = sync_channel::<Item>(QUEUE);
    let todo = Arc::new(Mutex::new(todo));
    thread::scope(|scope| {
        let (gate, total) = (&gate, &total);
        for _ in 0..workers() {
            let todo = todo.clone();
            scope.spawn(move || work(&todo, gate));
        }
        // With the last worker the jobs go: who hands them out must not wait for nobody.
        drop(todo);
        let counted = rules.clone();
        scope.spawn(move || count(count_dir, counted, gate, total));
        scope.spawn(move || {
            // What keeps it from going on is seen by the writer: its items end too early, or somebody ended the gate.
            let _ended = Walker::new(gate, jobs, order).walk(dir, rules);
        });
        let written = put(items, gate, total, Writer::new(events, scratch));
        gate.end();
        match written {
            Ok(()) | Err(Stopped::Gone) => Ok(()),
            Err(Stopped::Failed(error)) => Err(error),
        }
    })
}

fn workers() -> usize {
    thread::available_parallelism().map_or(1, |cores| cores.get().min(MAX_WORKERS))
}

/// Adds up what there is, for the progress.
fn count(dir: OwnedFd, rules: Rules, gate: &Gate, total: &AtomicU64) {
    let Ok(mut walk) = Walk::new(dir, rules, gate) else { return };
    let mut bytes = 0;
    loop {
        match walk.next() {
            Ok(Some(Step::Found(found))) if found.facts.kind == FileKind::File => bytes += found.facts.size,
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(Ended) => return,
        }
    }
    total.store(bytes, Ordering::Relaxed);
}

/// The writer's part.
fn put(items: Receiver<Item>, gate: &Gate, total: &AtomicU64, mut writer: Writer<'_>) -> Result<(), Stopped> {
    let mut bytes = 0;
    let mut told = Instant::now();
    let mut streamed: Option<(Member, u64, u64)> = None;
    loop {
        let Ok(item) = items.recv() else { return Err(fault()) };
        match item {
            Item::Line { member, content, line } => {
                if let Some(member) = member {
                    writer.whole(&member, &content)?;
                }
                writer.line(line)?;
            }
            Item::Skipped(skipped) => writer.skip(skipped),
            Item::Small { packed, room } => {
                let packed = packed.recv().map_err(|_| fault())?;
                match packed {
                    Packed::Whole { member, content, line } => {
                        bytes += member.size;
                        writer.whole(&member, &content)?;
                        match line {
                            Ok(line) => writer.line(line)?,
                            Err(skipped) => writer.skip(skipped),
                        }
                    }
                    Packed::Skipped(skipped) => writer.skip(skipped),
                    Packed::Block { .. } => return Err(fault()),
                }
                gate.give(room);
            }
            Item::Begin(member) => {
                let expected = member.size;
                let offset = writer.begin(&member)?;
                streamed = Some((Member { size: 0, ..member }, offset, expected));
            }
            Item::Block { packed, room } => {
                let (Ok(Packed::Block { content, crc, size }), Some((member, _, _))) =
                    (packed.recv(), &mut streamed)
                else {
                    return Err(fault());
                };
                writer.put(&content)?;
                let mut whole = crc32fast::Hasher::new_with_initial_len(member.crc, member.size);
                whole.combine(&crc);
                member.crc = whole.finalize();
                member.size += size;
                member.packed += content.len() as u64;
                bytes += size;
                gate.give(room);
            }
            Item::End(line) => {
                let Some((mut member, offset, expected)) = streamed.take() else { return Err(fault()) };
                member.packed += super::deflate::LAST.len() as u64;
                writer.end(&member, offset, expected)?;
                match line {
                    Ok(line) => writer.line(line)?,
                    Err(skipped) => writer.skip(skipped),
                }
            }
            Item::Finished => return writer.finish(),
        }
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            let total_bytes = total.load(Ordering::Relaxed);
            writer.tell(ArchiveProgress { entries: writer.entries(), bytes, total_bytes })?;
        }
    }
}

/// A thread of ours is gone without a word: it panicked.
fn fault() -> Stopped {
    ArchiveError::fault("making an archive").into()
}
