//! Reading a stored object from header to back, in blocks, on a thread of its own. Must not know what it reads.

use bytes::Bytes;
use tokio::{runtime::Handle, sync::mpsc};

use crate::backup_store::{
    digest::{Hasher, Sha256Digest},
    error::BackupStoreError,
    limits::INDEX_READ_BYTES,
    location::StorageLocation,
};

/// A part of an object. Only for threads that may block.
pub(super) struct ObjectReader {
    source: BlockSource,
    block: Bytes,
    /// Where the block begins, in bytes.
    at: u64,
    hasher: Hasher,
}

enum BlockSource {
    /// Fetched by somebody ahead of us; ends early if they fail.
    Fed(mpsc::Receiver<Bytes>),
    /// Fetched here, as far as `end`.
    Ranged { place: StorageLocation, object: String, handle: Handle, end: u64 },
}

impl ObjectReader {
    /// Of an object whose blocks, from its beginning on, somebody sends.
    pub(super) fn fed(blocks: mpsc::Receiver<Bytes>) -> Self {
        Self::new(BlockSource::Fed(blocks), 0)
    }

    /// Of the bytes from `at` to `end`.
    pub(super) fn ranged(place: StorageLocation, object: String, handle: Handle, at: u64, end: u64) -> Self {
        Self::new(BlockSource::Ranged { place, object, handle, end }, at)
    }

    fn new(source: BlockSource, at: u64) -> Self {
        Self { source, block: Bytes::new(), at, hasher: Hasher::new() }
    }

    /// Where the next byte is.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// What is there next: nothing at the end.
    pub(super) fn next(&mut self) -> Result<&[u8], BackupStoreError> {
        if self.block.is_empty() {
            self.block = match &mut self.source {
                BlockSource::Fed(blocks) => blocks.blocking_recv().unwrap_or_default(),
                BlockSource::Ranged { place, object, handle, end } => {
                    let to = (*end).min(self.at + INDEX_READ_BYTES);
                    handle.block_on(place.range(object, self.at..to))?
                }
            };
            self.hasher.update(&self.block);
        }
        Ok(&self.block)
    }

    /// So many of them have been dealt with.
    pub(super) fn consume(&mut self, count: usize) {
        let _dealt_with = self.block.split_to(count);
        self.at += count as u64;
    }

    /// Appends the next `count` bytes to `to`; false at the end.
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

    /// Appends the next line to `to`, its line feed included; false if it ends or has more than `most` bytes before that.
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

    /// Reads to the end; the digest of all since the beginning, and where the end is.
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
