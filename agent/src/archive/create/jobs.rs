//! The jobs of creating an archive, and both sides of their queue. The dispatcher walks the tree,
//! gives jobs to the workers, and passes the order of the results to the writer. Workers read and
//! deflate small files, and deflate the blocks of large files.

use std::{
    collections::HashMap,
    fs::File,
    os::fd::OwnedFd,
    sync::{
        Mutex,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

use podling_archive::{BLOCK_BYTES, Deflater, ZipEntryKind, ZipMember, hard_link_target};
use ring::digest::{Context, SHA256};
use rustix::fs::readlinkat;

use super::{
    CHANGED, Cancelled, CompressJob, Compressed, EntryRejection, MAX_NAME_BYTES, MemoryBudget,
    NAME_OVERHEAD_BYTES, WalkEntry, WalkStep, WriteItem, ignore::IgnoreRules, read_up_to, skip_reason,
    walk::TreeWalk,
};
use crate::{
    archive::{ArchivedEntry, EntryMetadata, FileIdentity, UnarchivedEntry},
    files::{FileKind, open_file_at},
    util::{finish_sha256, lock, sha256},
};

/// Bytes that a small file reserves in the memory budget on top of its size, for its name and
/// bookkeeping.
const MIN_ENTRY_BYTES: usize = 4_096;
/// Walks the tree and hands out [`CompressJob`]s.
#[derive(Debug)]
pub(super) struct JobDispatcher<'a> {
    budget: &'a MemoryBudget,
    jobs: SyncSender<CompressJob>,
    order: SyncSender<WriteItem>,
    /// Present if further names of a file become links.
    first_names: Option<FirstNames>,
}

impl<'a> JobDispatcher<'a> {
    pub(super) fn new(
        budget: &'a MemoryBudget,
        jobs: SyncSender<CompressJob>,
        order: SyncSender<WriteItem>,
        preservation: bool,
    ) -> Self {
        Self { budget, jobs, order, first_names: preservation.then(FirstNames::default) }
    }

    /// Walks the whole tree below `dir`, then sends [`WriteItem::Finished`].
    pub(super) fn walk(mut self, dir: OwnedFd, rules: IgnoreRules) -> Result<(), Cancelled> {
        match TreeWalk::new(dir, rules, self.budget) {
            Ok(mut walk) => {
                while let Some(step) = walk.next()? {
                    match step {
                        WalkStep::Skipped(skipped) => self.send(WriteItem::Skipped(skipped))?,
                        WalkStep::Found(found) => self.dispatch(found)?,
                    }
                }
            }
            Err(errno) => self.skip(Vec::new(), skip_reason(errno))?,
        }
        self.send(WriteItem::Finished)
    }

    fn dispatch(&mut self, found: WalkEntry) -> Result<(), Cancelled> {
        let first = self.first_names.as_mut().and_then(|names| names.target(&found.path, &found.metadata));
        if let Some(target) = first {
            return self.link(&found, target, true);
        }
        match found.metadata.kind {
            FileKind::File if found.metadata.size <= BLOCK_BYTES as u64 => {
                let reserved = MIN_ENTRY_BYTES + found.metadata.size as usize;
                self.budget.reserve(reserved)?;
                self.submit(reserved, |answer| CompressJob::Small(found, answer))
            }
            FileKind::File => self.large(&found),
            FileKind::Symlink => match readlinkat(&found.dir, &found.name, Vec::new()) {
                Ok(target) => self.link(&found, target.into_bytes(), false),
                Err(errno) => self.skip(found.path, skip_reason(errno)),
            },
            FileKind::Directory | FileKind::Other => {
                let fifo = found.metadata.is_fifo;
                let kind = match found.metadata.kind {
                    FileKind::Directory => Some(ZipEntryKind::Directory),
                    _ => fifo.then_some(ZipEntryKind::Fifo),
                };
                let member = kind.map(|kind| found.member(kind, &found.metadata));
                let entry = ArchivedEntry { fifo, ..found.entry(&found.metadata, None) };
                self.send(WriteItem::Entry { member, content: Vec::new(), entry })
            }
        }
    }

    /// Sends a symbolic link. With `hard_link`, it stands for a further name of a file.
    fn link(&self, found: &WalkEntry, target: Vec<u8>, hard_link: bool) -> Result<(), Cancelled> {
        let member = found.member(ZipEntryKind::Symlink, &found.metadata).with_content(&target, None);
        let member = Some(member.hard_link(hard_link));
        let entry = found.entry(&found.metadata, Some(sha256(&target)));
        let entry = ArchivedEntry { kind: FileKind::Symlink, size: 0, hard_link, ..entry };
        self.send(WriteItem::Entry { member, content: target, entry })
    }

    fn large(&self, found: &WalkEntry) -> Result<(), Cancelled> {
        let mut source = match FileSource::open(found, self.budget) {
            Ok(source) => source,
            Err(EntryRejection::Cancelled) => return Err(Cancelled),
            Err(EntryRejection::Skipped(reason)) => return self.skip(found.path.clone(), reason),
        };
        let metadata = source.metadata.clone();
        self.send(WriteItem::Begin(found.member(ZipEntryKind::File, &metadata).streamed(metadata.size)))?;
        let mut hash = Context::new(&SHA256);
        let read = loop {
            self.budget.reserve(BLOCK_BYTES)?;
            let mut block = Vec::new();
            if let Err(reason) = source.read(&mut block, BLOCK_BYTES) {
                break Err(reason);
            }
            if block.is_empty() {
                break source.finish();
            }
            hash.update(&block);
            self.submit(BLOCK_BYTES, |answer| CompressJob::Block(block, answer))?;
        };
        // The last reservation was for a block that was not read.
        self.budget.release(BLOCK_BYTES);
        self.send(WriteItem::End(found.read_entry(read, &metadata, || finish_sha256(hash))))
    }

    /// Queues a job for the workers, and its pending result for the writer, in archive order. The
    /// writer releases the `reserved` bytes.
    fn submit(
        &self,
        reserved: usize,
        job: impl FnOnce(SyncSender<Compressed>) -> CompressJob,
    ) -> Result<(), Cancelled> {
        let (answer, result) = sync_channel(1);
        self.jobs.send(job(answer)).map_err(|_| Cancelled)?;
        self.send(WriteItem::Compressed { result, reserved })
    }

    fn skip(&self, path: Vec<u8>, reason: String) -> Result<(), Cancelled> {
        self.send(WriteItem::Skipped(UnarchivedEntry { path, reason }))
    }

    fn send(&self, item: WriteItem) -> Result<(), Cancelled> {
        self.order.send(item).map_err(|_| Cancelled)
    }
}

/// Runs jobs until the last sender of `todo` is dropped.
pub(super) fn run_worker(todo: &Mutex<Receiver<CompressJob>>, budget: &MemoryBudget) {
    let mut deflater = Deflater::default();
    loop {
        let next = lock(todo).recv();
        let Ok(job) = next else { return };
        // After a cancellation the queue is drained, so that the dispatcher does not block on a
        // full queue. The writer notices a job without a result, because the job's channel closes.
        if budget.check_cancelled().is_err() {
            continue;
        }
        let _gone = match job {
            CompressJob::Small(found, answer) => match compress_small(&found, budget, &mut deflater) {
                Ok(packed) => answer.send(packed),
                Err(EntryRejection::Skipped(reason)) => {
                    answer.send(Compressed::Skipped(UnarchivedEntry { path: found.path, reason }))
                }
                // The writer notices that there is no result.
                Err(EntryRejection::Cancelled) => continue,
            },
            CompressJob::Block(block, answer) => {
                let Ok(content) = deflater.compress_block(&block) else { continue };
                let mut crc = crc32fast::Hasher::new();
                crc.update(&block);
                answer.send(Compressed::Block { content, crc, size: block.len() as u64 })
            }
        };
    }
}

fn compress_small(
    found: &WalkEntry,
    budget: &MemoryBudget,
    deflater: &mut Deflater,
) -> Result<Compressed, EntryRejection> {
    let mut source = FileSource::open(found, budget)?;
    if source.metadata.size > BLOCK_BYTES as u64 {
        return Err(CHANGED.into());
    }
    let mut block = Vec::new();
    source.read(&mut block, BLOCK_BYTES).map_err(EntryRejection::Skipped)?;
    let metadata = source.metadata.clone();
    let entry = found.read_entry(source.finish(), &metadata, || sha256(&block));
    // A defect of the compressor fails the whole archive, because the writer gets no result.
    let deflated = deflater.compress_whole(&block).map_err(|_| Cancelled)?;
    let member = found.member(ZipEntryKind::File, &metadata).with_content(&block, deflated.as_deref());
    Ok(Compressed::Whole { member, content: deflated.unwrap_or(block), entry })
}

impl WalkEntry {
    fn member(&self, kind: ZipEntryKind, metadata: &EntryMetadata) -> ZipMember {
        ZipMember::new(&self.path, kind, metadata.mode, metadata.modified)
    }

    /// Builds the manifest entry from `metadata`, which may be newer than that of the walk.
    fn entry(&self, metadata: &EntryMetadata, sha256: Option<[u8; 32]>) -> ArchivedEntry {
        ArchivedEntry {
            path: self.path.clone(),
            kind: metadata.kind,
            size: if metadata.kind == FileKind::File { metadata.size } else { 0 },
            mode: metadata.mode,
            modified: metadata.modified_at(),
            sha256,
            hard_link: false,
            fifo: false,
        }
    }

    /// Builds the manifest entry of a file, or the reason for which reading it failed.
    fn read_entry(
        &self,
        read: Result<(), String>,
        metadata: &EntryMetadata,
        sha256: impl FnOnce() -> [u8; 32],
    ) -> Result<ArchivedEntry, UnarchivedEntry> {
        read.map(|()| self.entry(metadata, Some(sha256())))
            .map_err(|reason| UnarchivedEntry { path: self.path.clone(), reason })
    }
}

/// The first name of each file with several names (hard links), in the order of the walk.
#[derive(Debug, Default)]
struct FirstNames {
    names: HashMap<FileIdentity, Vec<u8>>,
    bytes: usize,
}

impl FirstNames {
    /// Returns the target of a link from `path` to the first name of the same file. `None` if this
    /// is the first name, which is remembered.
    fn target(&mut self, path: &[u8], metadata: &EntryMetadata) -> Option<Vec<u8>> {
        if metadata.kind != FileKind::File || metadata.links < 2 {
            return None;
        }
        if let Some(first) = self.names.get(&metadata.identity()) {
            return hard_link_target(path, first);
        }
        let bytes = path.len() + NAME_OVERHEAD_BYTES;
        if self.bytes + bytes <= MAX_NAME_BYTES {
            self.bytes += bytes;
            self.names.insert(metadata.identity(), path.to_vec());
        }
        None
    }
}

/// A regular file, open for reading.
#[derive(Debug)]
struct FileSource {
    file: File,
    /// Metadata at the time of opening.
    metadata: EntryMetadata,
    left: u64,
}

impl FileSource {
    /// Opens the file, and waits if it changed a moment ago (see
    /// [`MemoryBudget::wait_mtime_granularity`]).
    fn open(found: &WalkEntry, budget: &MemoryBudget) -> Result<Self, EntryRejection> {
        let source = Self::try_open(found)?;
        let waited = budget.wait_mtime_granularity(source.metadata.changed)?;
        if waited { Self::try_open(found) } else { Ok(source) }
    }

    fn try_open(found: &WalkEntry) -> Result<Self, EntryRejection> {
        let file = File::from(open_file_at(&found.dir, &found.name)?);
        let metadata = EntryMetadata::of(&file)?;
        if metadata.kind != FileKind::File {
            return Err(CHANGED.into());
        }
        Ok(Self { file, left: metadata.size, metadata })
    }

    /// Reads the next `most` bytes into `block`, or fewer at the end.
    fn read(&mut self, block: &mut Vec<u8>, most: usize) -> Result<(), String> {
        let most = usize::try_from(self.left).map_or(most, |left| left.min(most));
        read_up_to(&self.file, block, most).map_err(skip_reason)?;
        self.left -= block.len() as u64;
        Ok(())
    }

    /// Checks after the last byte that the file is unchanged.
    fn finish(self) -> Result<(), String> {
        let changed = || Err(CHANGED.to_owned());
        let mut more = Vec::with_capacity(1);
        read_up_to(&self.file, &mut more, 1).map_err(skip_reason)?;
        let same = EntryMetadata::of(&self.file).map_err(skip_reason)? == self.metadata;
        if self.left > 0 || !more.is_empty() || !same { changed() } else { Ok(()) }
    }
}
