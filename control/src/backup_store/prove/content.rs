//! Hashes the contents of entries on a thread of its own, behind the decoder, and compares them
//! with the manifest. Independent of zips and of the store.

use std::sync::mpsc::{Receiver, SyncSender};

use crate::backup_store::sidecar::{Hasher, Sha256Digest};

/// Size of one block, in bytes.
const BLOCK_BYTES: usize = 256 * 1024;
/// Maximum number of queued blocks. While the queue is full, decoding waits for hashing.
pub(super) const MAX_BLOCKS: usize = 4;

/// Contents of entries, and the positions at which entries end.
pub(super) struct ContentBlock {
    bytes: Vec<u8>,
    ends: Vec<EntryEnd>,
}

struct EntryEnd {
    at: usize,
    path: Vec<u8>,
    expected: Sha256Digest,
}

/// The hashing thread has found a content that differs from the manifest, and has ended.
pub(super) struct HashMismatch;

/// The sending side of the queue, which the decoder uses.
pub(super) struct ContentSender {
    block: ContentBlock,
    /// Size of `ends` in the block, in bytes. A block is sent when either `bytes` or `ends` is
    /// full.
    paths: usize,
    hashing: SyncSender<ContentBlock>,
}

impl ContentSender {
    pub(super) fn new(hashing: SyncSender<ContentBlock>) -> Self {
        Self { block: ContentBlock::new(), paths: 0, hashing }
    }

    /// Appends content. Fails if the hashing thread has found a mismatch.
    pub(super) fn push(&mut self, mut content: &[u8]) -> Result<(), HashMismatch> {
        while !content.is_empty() {
            if self.block.bytes.len() == BLOCK_BYTES {
                self.send()?;
            }
            let (now, later) = content.split_at(content.len().min(BLOCK_BYTES - self.block.bytes.len()));
            self.block.bytes.extend_from_slice(now);
            content = later;
        }
        Ok(())
    }

    /// Ends an entry. The data since the end of the previous entry is the content of `path`, which
    /// should have the digest `expected`. Fails if the hashing thread has found a mismatch.
    pub(super) fn end(&mut self, path: Vec<u8>, expected: Sha256Digest) -> Result<(), HashMismatch> {
        self.paths += path.len() + size_of::<EntryEnd>();
        self.block.ends.push(EntryEnd { at: self.block.bytes.len(), path, expected });
        if self.paths > BLOCK_BYTES { self.send() } else { Ok(()) }
    }

    /// Sends the last block.
    pub(super) fn finish(mut self) {
        let _receiver_gone = self.send();
    }

    fn send(&mut self) -> Result<(), HashMismatch> {
        self.paths = 0;
        let block = std::mem::replace(&mut self.block, ContentBlock::new());
        self.hashing.send(block).map_err(|_| HashMismatch)
    }
}

impl ContentBlock {
    fn new() -> Self {
        Self { bytes: Vec::with_capacity(BLOCK_BYTES), ends: Vec::new() }
    }
}

/// Hashes blocks until the sender is dropped. The error is the path of the first entry whose digest
/// is wrong.
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
