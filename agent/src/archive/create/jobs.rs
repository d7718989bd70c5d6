//! The jobs of creating an archive, and both sides of their queue. The dispatcher walks the tree, gives
//! jobs to the workers, and passes the order of the results to the writer. Workers read and deflate
//! small files, and deflate the blocks of large files.

use std::{
    collections::{HashMap, HashSet},
    os::fd::OwnedFd,
    sync::{
        Mutex,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

use ring::digest::{Context, SHA256};
use rustix::fs::readlinkat;

use super::{
    CHANGED, Cancelled, EntryRejection, MemoryBudget,
    ignore::IgnoreRules,
    skip_reason,
    walk::{FileSource, TreeWalk, WalkEntry, WalkStep},
};
use crate::{
    archive::{
        ArchivedEntry, UnarchivedEntry,
        deflate::{BLOCK_BYTES, Deflater},
        metadata::{EntryMetadata, FileIdentity},
        zip::{MAX_TARGET, ZipMember, relative_target},
    },
    files::FileKind,
    util::{finish_sha256, lock, sha256},
};

/// Bytes that a small file reserves in the memory budget on top of its size, for its name and
/// bookkeeping.
const MIN_ENTRY_BYTES: usize = 4_096;
/// Bytes of the first names that are remembered. The names of further files are then archived as
/// files of their own.
const MAX_NAME_BYTES: usize = 16 * 1024 * 1024;
/// Bytes that each remembered name takes on top of its length.
const NAME_OVERHEAD_BYTES: usize = 64;

/// The next step of the writer.
#[derive(Debug)]
pub(super) enum WriteItem {
    /// A directory or link, or an entry that only the manifest lists (`member` is `None`).
    Entry {
        member: Option<ZipMember>,
        content: Vec<u8>,
        entry: ArchivedEntry,
    },
    Skipped(UnarchivedEntry),
    Small {
        result: Receiver<Compressed>,
        reserved: usize,
    },
    /// A large file begins.
    Begin(ZipMember),
    Block {
        result: Receiver<Compressed>,
        reserved: usize,
    },
    /// A large file ends. An error if the file could not be read or changed meanwhile.
    End(Result<ArchivedEntry, UnarchivedEntry>),
    Finished,
}

/// Input to deflate and the channel for its result.
#[derive(Debug)]
pub(super) enum CompressJob {
    /// A file of one block at most, not yet opened.
    Small(WalkEntry, SyncSender<Compressed>),
    /// A block of a large file.
    Block(Vec<u8>, SyncSender<Compressed>),
}

/// Result of a [`CompressJob`].
#[derive(Debug)]
pub(super) enum Compressed {
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
                let (answer, result) = sync_channel(1);
                self.budget.reserve(reserved)?;
                self.jobs.send(CompressJob::Small(found, answer)).map_err(|_| Cancelled)?;
                self.send(WriteItem::Small { result, reserved })
            }
            FileKind::File => self.large(&found),
            FileKind::Symlink => match readlinkat(&found.dir, &found.name, Vec::new()) {
                Ok(target) => self.link(&found, target.into_bytes(), false),
                Err(errno) => self.skip(found.path, skip_reason(errno)),
            },
            FileKind::Directory | FileKind::Other => {
                let fifo = found.metadata.is_fifo;
                let is_member = fifo || found.metadata.kind == FileKind::Directory;
                let member = is_member.then(|| ZipMember::empty(&found.path, &found.metadata));
                let entry = ArchivedEntry { fifo, ..found.entry(&found.metadata, None) };
                self.send(WriteItem::Entry { member, content: Vec::new(), entry })
            }
        }
    }

    /// Sends a symbolic link. With `hard_link`, it stands for a further name of a file.
    fn link(&self, found: &WalkEntry, target: Vec<u8>, hard_link: bool) -> Result<(), Cancelled> {
        let member = Some(ZipMember::link(&found.path, &found.metadata, &target, hard_link));
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
        self.send(WriteItem::Begin(ZipMember::streamed_file(&found.path, &metadata)))?;
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
            let (answer, result) = sync_channel(1);
            self.jobs.send(CompressJob::Block(block, answer)).map_err(|_| Cancelled)?;
            self.send(WriteItem::Block { result, reserved: BLOCK_BYTES })?;
        };
        // The last reservation was for a block that was not read.
        self.budget.release(BLOCK_BYTES);
        self.send(WriteItem::End(found.read_entry(read, &metadata, || finish_sha256(hash))))
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
    let mut deflater = Deflater::new();
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
    // A fault of the compressor gives no result, which the writer notices.
    let deflated = deflater.compress_whole(&block).map_err(|_| EntryRejection::Cancelled)?;
    let member = ZipMember::whole_file(&found.path, &metadata, &block, deflated.as_deref());
    Ok(Compressed::Whole { member, content: deflated.unwrap_or(block), entry })
}

impl WalkEntry {
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

/// The files with several names that were counted already.
#[derive(Debug, Default)]
pub(super) struct CountedFiles(HashSet<FileIdentity>);

impl FirstNames {
    /// Returns the target of a link from `path` to the first name of the same file. `None` if this
    /// is the first name, which is remembered.
    fn target(&mut self, path: &[u8], metadata: &EntryMetadata) -> Option<Vec<u8>> {
        if metadata.kind != FileKind::File || metadata.links < 2 {
            return None;
        }
        if let Some(first) = self.names.get(&metadata.identity()) {
            return Some(relative_target(path, first)).filter(|target| target.len() as u64 <= MAX_TARGET);
        }
        let bytes = path.len() + NAME_OVERHEAD_BYTES;
        if self.bytes + bytes <= MAX_NAME_BYTES {
            self.bytes += bytes;
            self.names.insert(metadata.identity(), path.to_vec());
        }
        None
    }
}

impl CountedFiles {
    /// Returns whether the content of this file counts, because no other name of it was counted.
    pub(super) fn is_new(&mut self, metadata: &EntryMetadata) -> bool {
        let max_files = MAX_NAME_BYTES / NAME_OVERHEAD_BYTES;
        metadata.links < 2 || self.0.len() >= max_files || self.0.insert(metadata.identity())
    }
}
