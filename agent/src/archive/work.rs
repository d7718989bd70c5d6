//! The workers of an archive: they read small files and deflate them, and deflate the blocks of large ones.

use std::sync::{
    Mutex,
    mpsc::{Receiver, SyncSender},
};

use ring::digest::{SHA256, digest};

use super::{
    deflate::{BLOCK, Deflater, Fault},
    gate::{Ended, Gate},
    layout::{self, Member},
    manifest::{ArchivedEntry, SkippedEntry},
    source::Source,
    walk::{CHANGED, Found},
};

/// Something to deflate, and where to answer.
#[derive(Debug)]
pub(super) enum Job {
    /// A file of one block at most, not opened yet.
    Small(Found, SyncSender<Packed>),
    /// A block of a large one.
    Block(Vec<u8>, SyncSender<Packed>),
}

/// What became of it.
#[derive(Debug)]
pub(super) enum Packed {
    Whole {
        member: Member,
        content: Vec<u8>,
        /// Not if it changed.
        line: Result<ArchivedEntry, SkippedEntry>,
    },
    Skipped(SkippedEntry),
    Block {
        content: Vec<u8>,
        crc: crc32fast::Hasher,
        size: u64,
    },
}

/// Works until there is nothing left to do, ever.
pub(super) fn work(todo: &Mutex<Receiver<Job>>, gate: &Gate) {
    let mut deflater = Deflater::new();
    loop {
        let next = todo.lock().unwrap_or_else(|e| e.into_inner()).recv();
        let Ok(job) = next else { return };
        // What is left of an archive that was given up is passed over, lest who hands it out waits for room; an answer that is not
        // given is seen by who waits for it.
        if gate.check().is_err() {
            continue;
        }
        let _gone = match job {
            Job::Small(found, answer) => match small(&found, gate, &mut deflater) {
                Ok(Ok(packed)) => answer.send(packed),
                Ok(Err(Fault)) | Err(Ended) => continue,
            },
            Job::Block(block, answer) => match deflater.block(&block) {
                Ok(content) => {
                    let mut crc = crc32fast::Hasher::new();
                    crc.update(&block);
                    answer.send(Packed::Block { content, crc, size: block.len() as u64 })
                }
                Err(Fault) => continue,
            },
        };
    }
}

fn small(found: &Found, gate: &Gate, deflater: &mut Deflater) -> Result<Result<Packed, Fault>, Ended> {
    let skipped = |reason: String| Packed::Skipped(SkippedEntry { path: found.path.clone(), reason });
    let mut source = match Source::open(found, gate)? {
        Ok(source) if source.facts.size <= BLOCK as u64 => source,
        Ok(_) => return Ok(Ok(skipped(CHANGED.to_owned()))),
        Err(reason) => return Ok(Ok(skipped(reason))),
    };
    let mut block = Vec::new();
    if let Err(reason) = source.read(&mut block, BLOCK) {
        return Ok(Ok(skipped(reason)));
    }
    let facts = source.facts.clone();
    let same = source.finish();
    let mut digested = [0; 32];
    digested.copy_from_slice(digest(&SHA256, &block).as_ref());
    let (crc, size) = (crc32fast::hash(&block), block.len() as u64);
    let (method, content) = match deflater.whole(&block) {
        Ok(Some(deflated)) => (layout::DEFLATED, deflated),
        Ok(None) => (layout::STORED, block),
        Err(fault) => return Ok(Err(fault)),
    };
    let member = Member {
        name: found.path.clone(),
        mode: layout::IS_FILE | facts.mode,
        modified: facts.modified,
        method,
        crc,
        packed: content.len() as u64,
        size,
        streamed: false,
    };
    let line = match same {
        Ok(()) => Ok(found.line(&facts, Some(digested))),
        Err(reason) => Err(SkippedEntry { path: found.path.clone(), reason }),
    };
    Ok(Ok(Packed::Whole { member, content, line }))
}
