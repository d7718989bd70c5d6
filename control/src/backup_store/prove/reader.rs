//! Reads and hashes a stored object sequentially, in blocks, on a blocking thread.

use bytes::Bytes;
use tokio::{runtime::Handle, sync::mpsc};

use crate::backup_store::{
    digest::{Hasher, Sha256Digest},
    error::BackupStoreError,
    limits::INDEX_READ_BYTES,
    location::StorageLocation,
};

/// A range of an object. Only for threads that may block.
pub(super) struct ObjectReader {
    source: BlockSource,
    block: Bytes,
    /// Position of the block in the object, in bytes.
    at: u64,
    hasher: Hasher,
}

enum BlockSource {
    /// Another task reads ahead; ends early if that fails.
    Fed(mpsc::Receiver<Bytes>),
    /// Read on demand, up to `end`.
    Ranged { location: StorageLocation, object: String, handle: Handle, end: u64 },
}

impl ObjectReader {
    /// Reads an object from its beginning, from blocks that another task sends.
    pub(super) fn fed(blocks: mpsc::Receiver<Bytes>) -> Self {
        Self::new(BlockSource::Fed(blocks), 0)
    }

    /// Reads the bytes from `at` to `end`.
    pub(super) fn ranged(
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

    /// Position of the next byte.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// Returns the next bytes; empty at the end.
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

    /// Advances by `count` bytes of the current block.
    pub(super) fn consume(&mut self, count: usize) {
        let _dealt_with = self.block.split_to(count);
        self.at += count as u64;
    }

    /// Appends the next `count` bytes to `to`; `false` if fewer remain.
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

    /// Appends the next line with its line feed to `to`; `false` if it has no line feed or more
    /// than `most` bytes.
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

    /// Reads to the end. Returns the digest of everything since the start, and the position of the
    /// end.
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
