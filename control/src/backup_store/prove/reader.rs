//! Reads a stored object sequentially and in blocks, on a blocking thread, and hashes it.

use bytes::Bytes;
use tokio::{runtime::Handle, sync::mpsc};

use crate::backup_store::{
    digest::{Hasher, Sha256Digest},
    error::BackupStoreError,
    limits::INDEX_READ_BYTES,
    location::StorageLocation,
};

/// Reads a range of an object. Its methods block.
pub(super) struct ObjectReader {
    source: BlockSource,
    block: Bytes,
    /// Position in the object of the next byte to consume.
    at: u64,
    hasher: Hasher,
}

enum BlockSource {
    /// Blocks that another task reads ahead. They end early if that task fails.
    Fed(mpsc::Receiver<Bytes>),
    /// Reads blocks when they are needed, up to `end`.
    Ranged { location: StorageLocation, object: String, handle: Handle, end: u64 },
}

impl ObjectReader {
    /// Creates a reader of an object whose blocks another task sends, from its first byte.
    pub(super) fn from_blocks(blocks: mpsc::Receiver<Bytes>) -> Self {
        Self::new(BlockSource::Fed(blocks), 0)
    }

    /// Creates a reader of the bytes from `at` to `end`.
    pub(super) fn from_ranges(
        location: StorageLocation,
        object: String,
        handle: Handle,
        at: u64,
        end: u64,
    ) -> Self {
        Self::new(BlockSource::Ranged { location, object, handle, end }, at)
    }

    fn new(source: BlockSource, at: u64) -> Self {
        Self { source, block: Bytes::new(), at, hasher: Hasher::new() }
    }

    /// Returns the position in the object of the next byte to consume.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// Returns the rest of the current block, or the next block if all was consumed. Empty at the
    /// end.
    pub(super) fn next(&mut self) -> Result<&[u8], BackupStoreError> {
        if self.block.is_empty() {
            self.block = match &mut self.source {
                BlockSource::Fed(blocks) => blocks.blocking_recv().unwrap_or_default(),
                BlockSource::Ranged { location, object, handle, end } => {
                    let to = (*end).min(self.at + INDEX_READ_BYTES);
                    handle.block_on(location.range(object, self.at..to))?
                }
            };
            self.hasher.update(&self.block);
        }
        Ok(&self.block)
    }

    /// Consumes `count` bytes of the current block.
    pub(super) fn consume(&mut self, count: usize) {
        let _dealt_with = self.block.split_to(count);
        self.at += count as u64;
    }

    /// Consumes the next `count` bytes and appends them to `to`. Returns `false` if fewer remain.
    pub(super) fn take(&mut self, count: usize, to: &mut Vec<u8>) -> Result<bool, BackupStoreError> {
        let mut missing = count;
        while missing > 0 {
            let next = self.next()?;
            if next.is_empty() {
                return Ok(false);
            }
            let now = missing.min(next.len());
            to.extend_from_slice(&next[..now]);
            self.consume(now);
            missing -= now;
        }
        Ok(true)
    }

    /// Consumes the next line and appends it to `to`, with its line feed. Returns `false` if the
    /// line has no line feed or more than `most` bytes.
    pub(super) fn line(&mut self, most: u64, to: &mut Vec<u8>) -> Result<bool, BackupStoreError> {
        loop {
            let next = self.next()?;
            let end = next.iter().position(|b| *b == b'\n');
            let count = end.map_or(next.len(), |end| end + 1);
            to.extend_from_slice(&next[..count]);
            self.consume(count);
            if end.is_some() || count == 0 || to.len() as u64 > most {
                return Ok(end.is_some() && to.len() as u64 <= most);
            }
        }
    }

    /// Reads to the end. Returns the digest of all bytes that this reader has read, and the
    /// position of the end.
    pub(super) fn finish(mut self) -> Result<(Sha256Digest, u64), BackupStoreError> {
        loop {
            let count = self.next()?.len();
            if count == 0 {
                return Ok((self.hasher.finish(), self.at));
            }
            self.consume(count);
        }
    }
}
