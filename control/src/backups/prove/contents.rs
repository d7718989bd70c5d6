//! Decoded contents on their way to the thread that hashes them. Small files travel together.

use std::sync::mpsc::{Receiver, SyncSender};

use crate::backups::digest::{Digest, Hasher};

/// Of one block, in bytes: what travels at once.
const BLOCK_BYTES: usize = 256 * 1024;
/// Blocks on their way. When they are full, decoding waits for hashing.
pub(super) const BLOCKS: usize = 4;

/// Contents, and where in them entries end.
pub(super) struct Block {
    bytes: Vec<u8>,
    ends: Vec<Ends>,
}

struct Ends {
    at: usize,
    path: Vec<u8>,
    expected: Digest,
}

/// The decoding end.
pub(super) struct Contents {
    block: Block,
    /// Of `paths` in the block, so that names bound it as contents do.
    paths: usize,
    hashing: SyncSender<Block>,
}

impl Contents {
    pub(super) fn new(hashing: SyncSender<Block>) -> Self {
        Self { block: Block::new(), paths: 0, hashing }
    }

    /// Where contents are appended, at least a byte of room in it; `None` when the other end has found a fault.
    pub(super) fn room(&mut self) -> Option<&mut Vec<u8>> {
        if self.block.bytes.len() == self.block.bytes.capacity() || self.paths > BLOCK_BYTES {
            self.send()?;
        }
        Some(&mut self.block.bytes)
    }

    /// What was appended since the last end is the content of `path`, and its digest should be this.
    pub(super) fn end(&mut self, path: Vec<u8>, expected: Digest) -> Option<()> {
        self.paths += path.len() + size_of::<Ends>();
        self.block.ends.push(Ends { at: self.block.bytes.len(), path, expected });
        if self.paths > BLOCK_BYTES { self.send() } else { Some(()) }
    }

    /// There is no more.
    pub(super) fn finish(mut self) {
        let _nobody_left = self.send();
    }

    fn send(&mut self) -> Option<()> {
        self.paths = 0;
        self.hashing.send(std::mem::replace(&mut self.block, Block::new())).ok()
    }
}

impl Block {
    fn new() -> Self {
        Self { bytes: Vec::with_capacity(BLOCK_BYTES), ends: Vec::new() }
    }
}

/// The hashing end: the path of the first entry whose content is not what it should be.
pub(super) fn compare(blocks: &Receiver<Block>) -> Result<(), Vec<u8>> {
    let mut hasher = Hasher::new();
    for block in blocks {
        let mut from = 0;
        for Ends { at, path, expected } in block.ends {
            hasher.update(&block.bytes[from..at]);
            from = at;
            if hasher.finish() != expected {
                return Err(path);
            }
        }
        hasher.update(&block.bytes[from..]);
    }
    Ok(())
}
