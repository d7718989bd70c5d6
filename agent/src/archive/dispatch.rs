//! The thread that walks the tree of an archive. It gives jobs to the workers, and passes the order
//! of their results to the writer.

use std::{
    os::fd::OwnedFd,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
};

use ring::digest::{Context, SHA256, digest};
use rustix::fs::readlinkat;

use super::{
    compress::{CompressJob, Compressed},
    deflate::BLOCK_BYTES,
    hard_links::FirstNames,
    ignore::IgnoreRules,
    layout::{self, ZipMember},
    manifest::{ArchivedEntry, UnarchivedEntry},
    memory_budget::{Cancelled, MemoryBudget},
    source::FileSource,
    walk::{TreeWalk, WalkEntry, WalkStep, skip_reason},
    write::sha256,
};
use crate::files::FileKind;

/// Bytes that a small file reserves in the memory budget on top of its size, for its name and
/// bookkeeping.
const MIN_ENTRY_BYTES: usize = 4_096;

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
    /// A large file begins; `size` is the expected size.
    Begin(ZipMember),
    Block {
        result: Receiver<Compressed>,
        reserved: usize,
    },
    /// A large file ends. An error if the file could not be read or changed meanwhile.
    End(Result<ArchivedEntry, UnarchivedEntry>),
    Finished,
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
        let mut walk = match TreeWalk::new(dir, rules, self.budget) {
            Ok(walk) => walk,
            Err(errno) => {
                self.send(WriteItem::Skipped(UnarchivedEntry {
                    path: Vec::new(),
                    reason: skip_reason(errno),
                }))?;
                return self.send(WriteItem::Finished);
            }
        };
        while let Some(step) = walk.next()? {
            match step {
                WalkStep::Skipped(skipped) => self.send(WriteItem::Skipped(skipped))?,
                WalkStep::Found(found) => self.dispatch(found)?,
            }
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
            FileKind::Directory => {
                let name = [&found.path[..], b"/"].concat();
                let member = found.member(name, layout::IS_DIRECTORY, &[]);
                self.send(WriteItem::Entry {
                    member: Some(member),
                    content: Vec::new(),
                    entry: found.entry(&found.metadata, None),
                })
            }
            FileKind::Symlink => {
                let content = match readlinkat(&found.dir, &found.name, Vec::new()) {
                    Ok(target) => target.into_bytes(),
                    Err(errno) => {
                        return self.send(WriteItem::Skipped(UnarchivedEntry {
                            path: found.path,
                            reason: skip_reason(errno),
                        }));
                    }
                };
                self.link(&found, content, false)
            }
            FileKind::Other => {
                let fifo = found.metadata.is_fifo;
                let member = fifo.then(|| found.member(found.path.clone(), layout::IS_FIFO, &[]));
                let entry = ArchivedEntry { fifo, ..found.entry(&found.metadata, None) };
                self.send(WriteItem::Entry { member, content: Vec::new(), entry })
            }
        }
    }

    /// Sends a symbolic link. With `hard_link`, it stands for a further name of a file.
    fn link(&self, found: &WalkEntry, target: Vec<u8>, hard_link: bool) -> Result<(), Cancelled> {
        let member = found.member(found.path.clone(), layout::IS_SYMLINK, &target);
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, &target).as_ref());
        let entry = found.entry(&found.metadata, Some(hash));
        let entry = ArchivedEntry { kind: FileKind::Symlink, size: 0, hard_link, ..entry };
        let member = Some(ZipMember { hard_link, ..member });
        self.send(WriteItem::Entry { member, content: target, entry })
    }

    fn large(&self, found: &WalkEntry) -> Result<(), Cancelled> {
        let skipped = |reason| UnarchivedEntry { path: found.path.clone(), reason };
        let mut source = match FileSource::open(found, self.budget)? {
            Ok(source) => source,
            Err(reason) => return self.send(WriteItem::Skipped(skipped(reason))),
        };
        let metadata = source.metadata.clone();
        self.send(WriteItem::Begin(ZipMember {
            name: found.path.clone(),
            mode: layout::IS_FILE | metadata.mode,
            modified: metadata.modified,
            method: layout::DEFLATED,
            crc: 0,
            compressed_size: 0,
            size: metadata.size,
            streamed: true,
            hard_link: false,
        }))?;
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
        self.send(WriteItem::End(read.map(|()| found.entry(&metadata, Some(sha256(hash)))).map_err(skipped)))
    }

    fn send(&self, item: WriteItem) -> Result<(), Cancelled> {
        self.order.send(item).map_err(|_| Cancelled)
    }
}

impl WalkEntry {
    /// Builds the zip member of an entry that is stored uncompressed.
    fn member(&self, name: Vec<u8>, kind: u32, content: &[u8]) -> ZipMember {
        ZipMember {
            name,
            mode: kind | self.metadata.mode,
            modified: self.metadata.modified,
            method: layout::STORED,
            crc: crc32fast::hash(content),
            compressed_size: content.len() as u64,
            size: content.len() as u64,
            streamed: false,
            hard_link: false,
        }
    }

    /// Builds the manifest entry from `metadata`, which may be newer than that of the walk.
    pub(super) fn entry(
        &self,
        metadata: &super::metadata::EntryMetadata,
        sha256: Option<[u8; 32]>,
    ) -> ArchivedEntry {
        let size = if metadata.kind == FileKind::File { metadata.size } else { 0 };
        ArchivedEntry {
            path: self.path.clone(),
            kind: metadata.kind,
            size,
            mode: metadata.mode,
            modified: metadata.modified_at(),
            sha256,
            hard_link: false,
            fifo: false,
        }
    }
}
