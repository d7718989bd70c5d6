//! Worker threads of an archive. They read and deflate small files, and deflate the blocks of large
//! files.

use std::sync::{
    Mutex,
    mpsc::{Receiver, SyncSender},
};

use ring::digest::{SHA256, digest};

use super::{
    deflate::{BLOCK_BYTES, DeflateFault, Deflater},
    layout::{self, ZipMember},
    manifest::{ArchivedEntry, UnarchivedEntry},
    memory_budget::{Cancelled, MemoryBudget},
    source::FileSource,
    walk::{CHANGED, WalkEntry},
};

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

/// Runs jobs until the last sender of `todo` is dropped.
pub(super) fn run_worker(todo: &Mutex<Receiver<CompressJob>>, budget: &MemoryBudget) {
    let mut deflater = Deflater::new();
    loop {
        let next = todo.lock().unwrap_or_else(|e| e.into_inner()).recv();
        let Ok(job) = next else { return };
        // After a cancellation the queue is drained, so that the dispatcher does not block on a
        // full queue. The writer notices a job without a result, because the job's channel closes.
        if budget.check_cancelled().is_err() {
            continue;
        }
        let _gone = match job {
            CompressJob::Small(found, answer) => match compress_small(&found, budget, &mut deflater) {
                Ok(Ok(packed)) => answer.send(packed),
                Ok(Err(DeflateFault)) | Err(Cancelled) => continue,
            },
            CompressJob::Block(block, answer) => match deflater.compress_block(&block) {
                Ok(content) => {
                    let mut crc = crc32fast::Hasher::new();
                    crc.update(&block);
                    answer.send(Compressed::Block { content, crc, size: block.len() as u64 })
                }
                Err(DeflateFault) => continue,
            },
        };
    }
}

fn compress_small(
    found: &WalkEntry,
    budget: &MemoryBudget,
    deflater: &mut Deflater,
) -> Result<Result<Compressed, DeflateFault>, Cancelled> {
    let skipped = |reason: String| Compressed::Skipped(UnarchivedEntry { path: found.path.clone(), reason });
    let mut source = match FileSource::open(found, budget)? {
        Ok(source) if source.metadata.size <= BLOCK_BYTES as u64 => source,
        Ok(_) => return Ok(Ok(skipped(CHANGED.to_owned()))),
        Err(reason) => return Ok(Ok(skipped(reason))),
    };
    let mut block = Vec::new();
    if let Err(reason) = source.read(&mut block, BLOCK_BYTES) {
        return Ok(Ok(skipped(reason)));
    }
    let metadata = source.metadata.clone();
    let same = source.finish();
    let mut digested = [0; 32];
    digested.copy_from_slice(digest(&SHA256, &block).as_ref());
    let (crc, size) = (crc32fast::hash(&block), block.len() as u64);
    let (method, content) = match deflater.compress_whole(&block) {
        Ok(Some(deflated)) => (layout::DEFLATED, deflated),
        Ok(None) => (layout::STORED, block),
        Err(fault) => return Ok(Err(fault)),
    };
    let member = ZipMember {
        name: found.path.clone(),
        mode: layout::IS_FILE | metadata.mode,
        modified: metadata.modified,
        method,
        crc,
        compressed_size: content.len() as u64,
        size,
        streamed: false,
        hard_link: false,
    };
    let entry = match same {
        Ok(()) => Ok(found.entry(&metadata, Some(digested))),
        Err(reason) => Err(UnarchivedEntry { path: found.path.clone(), reason }),
    };
    Ok(Ok(Compressed::Whole { member, content, entry }))
}
