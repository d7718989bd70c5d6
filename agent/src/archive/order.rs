//! The walk's part in making an archive: gives work to the workers and says in which order the writer takes what comes back.

use std::{
    os::fd::OwnedFd,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
};

use ring::digest::{Context, SHA256, digest};
use rustix::fs::readlinkat;

use super::{
    deflate::BLOCK,
    gate::{Ended, Gate},
    ignore::Rules,
    layout::{self, Member},
    manifest::{ArchivedEntry, SkippedEntry},
    source::Source,
    walk::{Found, Step, Walk, reason},
    work::{Job, Packed},
    write::sha256,
};
use crate::files::FileKind;

/// The least a small file counts for in memory, in bytes: its name, and what surrounds it.
const LEAST_ROOM: usize = 4_096;

/// What the writer does next.
#[derive(Debug)]
pub(super) enum Item {
    /// A folder, a link, or something that is only named.
    Line {
        member: Option<Member>,
        content: Vec<u8>,
        line: ArchivedEntry,
    },
    Skipped(SkippedEntry),
    Small {
        packed: Receiver<Packed>,
        room: usize,
    },
    /// A large file begins; `size` is what is expected.
    Begin(Member),
    Block {
        packed: Receiver<Packed>,
        room: usize,
    },
    /// It ends; not a line if it changed.
    End(Result<ArchivedEntry, SkippedEntry>),
    /// There is no more.
    Finished,
}

/// Walks and hands on.
#[derive(Debug)]
pub(super) struct Walker<'a> {
    gate: &'a Gate,
    jobs: SyncSender<Job>,
    order: SyncSender<Item>,
}

impl<'a> Walker<'a> {
    pub(super) fn new(gate: &'a Gate, jobs: SyncSender<Job>, order: SyncSender<Item>) -> Self {
        Self { gate, jobs, order }
    }

    /// The whole walk.
    pub(super) fn walk(self, dir: OwnedFd, rules: Rules) -> Result<(), Ended> {
        let mut walk = match Walk::new(dir, rules, self.gate) {
            Ok(walk) => walk,
            Err(errno) => {
                self.say(Item::Skipped(SkippedEntry { path: Vec::new(), reason: reason(errno) }))?;
                return self.say(Item::Finished);
            }
        };
        while let Some(step) = walk.next()? {
            match step {
                Step::Skipped(skipped) => self.say(Item::Skipped(skipped))?,
                Step::Found(found) => self.found(found)?,
            }
        }
        self.say(Item::Finished)
    }

    fn found(&self, found: Found) -> Result<(), Ended> {
        match found.facts.kind {
            FileKind::File if found.facts.size <= BLOCK as u64 => {
                let room = LEAST_ROOM + found.facts.size as usize;
                let (answer, packed) = sync_channel(1);
                self.gate.take(room)?;
                self.jobs.send(Job::Small(found, answer)).map_err(|_| Ended)?;
                self.say(Item::Small { packed, room })
            }
            FileKind::File => self.large(&found),
            FileKind::Directory => {
                let name = [&found.path[..], b"/"].concat();
                let member = found.member(name, layout::IS_FOLDER, &[]);
                self.say(Item::Line {
                    member: Some(member),
                    content: Vec::new(),
                    line: found.line(&found.facts, None),
                })
            }
            FileKind::Symlink => {
                let content = match readlinkat(&found.dir, &found.name, Vec::new()) {
                    Ok(target) => target.into_bytes(),
                    Err(errno) => {
                        return self
                            .say(Item::Skipped(SkippedEntry { path: found.path, reason: reason(errno) }));
                    }
                };
                let member = found.member(found.path.clone(), layout::IS_SYMLINK, &content);
                let mut hash = [0; 32];
                hash.copy_from_slice(digest(&SHA256, &content).as_ref());
                let line = found.line(&found.facts, Some(hash));
                self.say(Item::Line { member: Some(member), content, line })
            }
            FileKind::Other => {
                let line = found.line(&found.facts, None);
                self.say(Item::Line { member: None, content: Vec::new(), line })
            }
        }
    }

    fn large(&self, found: &Found) -> Result<(), Ended> {
        let skipped = |reason| SkippedEntry { path: found.path.clone(), reason };
        let mut source = match Source::open(found, self.gate)? {
            Ok(source) => source,
            Err(reason) => return self.say(Item::Skipped(skipped(reason))),
        };
        let facts = source.facts.clone();
        self.say(Item::Begin(Member {
            name: found.path.clone(),
            mode: layout::IS_FILE | facts.mode,
            modified: facts.modified,
            method: layout::DEFLATED,
            crc: 0,
            packed: 0,
            size: facts.size,
            streamed: true,
        }))?;
        let mut hash = Context::new(&SHA256);
        let read = loop {
            self.gate.take(BLOCK)?;
            let mut block = Vec::new();
            if let Err(reason) = source.read(&mut block, BLOCK) {
                break Err(reason);
            }
            if block.is_empty() {
                break source.finish();
            }
            hash.update(&block);
            let (answer, packed) = sync_channel(1);
            self.jobs.send(Job::Block(block, answer)).map_err(|_| Ended)?;
            self.say(Item::Block { packed, room: BLOCK })?;
        };
        // What was taken for the block that did not come.
        self.gate.give(BLOCK);
        self.say(Item::End(read.map(|()| found.line(&facts, Some(sha256(hash)))).map_err(skipped)))
    }

    fn say(&self, item: Item) -> Result<(), Ended> {
        self.order.send(item).map_err(|_| Ended)
    }
}

impl Found {
    /// An entry that is stored as it is.
    fn member(&self, name: Vec<u8>, kind: u32, content: &[u8]) -> Member {
        Member {
            name,
            mode: kind | self.facts.mode,
            modified: self.facts.modified,
            method: layout::STORED,
            crc: crc32fast::hash(content),
            packed: content.len() as u64,
            size: content.len() as u64,
            streamed: false,
        }
    }

    /// Its line in the manifest, with what is known of it now.
    pub(super) fn line(&self, facts: &super::facts::Facts, sha256: Option<[u8; 32]>) -> ArchivedEntry {
        let size = if facts.kind == FileKind::File { facts.size } else { 0 };
        ArchivedEntry {
            path: self.path.clone(),
            kind: facts.kind,
            size,
            mode: facts.mode,
            modified: facts.modified_at(),
            sha256,
        }
    }
}
