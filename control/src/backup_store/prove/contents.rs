//! Decoded contents on their way to the thread that hashes them. Small files travel together.

use std::sync::mpsc::{Receiver, SyncSender};

use crate::backup_store::digest::{Hasher, Sha256Digest};

/// Of one block, in bytes: what travels at once.
const BLOCK_BYTES: usize = 256 * 1024;
/// Blocks on their way. When they are full, decoding waits for hashing.
pub(super) const MAX_BLOCKS: usize = 4;

/// ContentSender, and where in them entries end.
pub(super) struct ContentBlock {
    bytes: Vec<u8>,
    ends: Vec<EntryEnd>,
}

struct EntryEnd {
    at: usize,
    path: Vec<u8>,
    expected: Sha256Digest,
}

/// The decoding end.
pub(super) struct ContentSender {
    block: ContentBlock,
    /// Of `paths` in the block, so that names bound it as contents do.
    paths: usize,
    hashing: SyncSender<ContentBlock>,
}

impl ContentSender {
    pub(super) fn new(hashing: SyncSender<ContentBlock>) -> Self {
        Self { block: ContentBlock::new(), paths: 0, hashing }
    }

    /// Where contents are appended, at least a byte of room in it; `None` when the other end has found a fault.
    pub(super) fn room(&mut self) -> Option<&mut Vec<u8>> {
        if self.block.bytes.len() == self.block.bytes.capacity() || self.paths > BLOCK_BYTES {
            self.send()?;
        }
        Some(&mut self.block.bytes)
    }

    /// What was appended since the last end is the content of `path`, and its digest should be this.
    pub(super) fn end(&mut self, path: Vec<u8>, expected: Sha256Digest) -> Option<()> {
        self.paths += path.len() + size_of::<EntryEnd>();
        self.block.ends.push(EntryEnd { at: self.block.bytes.len(), path, expected });
        if self.paths > BLOCK_BYTES { self.send() } else { Some(()) }
    }

    /// There is no more.
    pub(super) fn finish(mut self) {
        let _nobody_left = self.send();
    }

    fn send(&mut self) -> Option<()> {
        self.paths = 0;
        self.hashing.send(std::mem::replace(&mut self.block, ContentBlock::new())).ok()
    }
}

impl ContentBlock {
    fn new() -> Self {
        Self { bytes: Vec::with_capacity(BLOCK_BYTES), ends: Vec::new() }
    }
}

/// The hashing end: the path of the first entry whose content is not what it should be.
pub(super) fn verify_hashes(blocks: &Receiver<ContentBlock>) -> Result<(), Vec<u8>> {
    let mut hasher = Hasher::new();
    for block in blocks {
        let mut from = 0;
        for EntryEnd { at, path, expected } in block.ends {
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
