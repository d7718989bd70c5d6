//! Byte log: the newest output of a terminal or process, in which every byte has a permanent
//! offset.
//!
//! Pure: no clock, no notification, no lock. Many readers share a log, each with its own offset,
//! and receive slices of the log's chunks.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

#[cfg(test)]
mod tests;

/// Largest chunk in bytes, and thus the longest slice that [`ByteLog::read`] returns. It bounds the
/// size of a message.
pub const CHUNK_BYTES: usize = 64 * 1024;
/// Size of the first chunk in bytes. This is enough for a prompt, so a log with no other output
/// takes no more memory.
const FIRST_CHUNK_BYTES: usize = 512;
/// Reads of the open chunk that are shorter than this are copied. Longer reads close the chunk and
/// share its bytes. Frequent short reads therefore do not split the log into thousands of chunks,
/// and large output is not copied.
const COPY_BELOW_BYTES: usize = 4 * 1024;

/// The newest bytes of one output stream, up to a fixed capacity.
#[derive(Debug)]
pub struct ByteLog {
    epoch: u64,
    max_bytes: usize,
    oldest: u64,
    next: u64,
    /// Consecutive chunks; the first may start before `oldest` because eviction removes whole
    /// chunks.
    closed: VecDeque<LogChunk>,
    /// Newest bytes, after `closed`. Never reallocated.
    open: BytesMut,
}

#[derive(Debug)]
struct LogChunk {
    offset: u64,
    bytes: Bytes,
}

/// Content of a log at an offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogRead {
    /// Bytes `[from, to)` were evicted; the reader continues at `to`.
    Gap {
        /// Offset that was requested.
        from: u64,
        /// Offset of the oldest byte in the log.
        to: u64,
    },
    /// At least one byte.
    Data {
        /// Offset of the first byte.
        offset: u64,
        /// Length at most [`CHUNK_BYTES`].
        bytes: Bytes,
    },
    /// The offset is the end of the log, and no byte follows yet.
    AtEnd,
    /// The offset is after the end of the log.
    Beyond,
}

impl ByteLog {
    /// Creates an empty log for the newest `max_bytes` (at least 1). Allocates nothing.
    pub fn new(epoch: u64, max_bytes: usize) -> Self {
        Self {
            epoch,
            max_bytes: max_bytes.max(1),
            oldest: 0,
            next: 0,
            closed: VecDeque::new(),
            open: BytesMut::new(),
        }
    }

    /// Returns the epoch of the log. Each start of the agent begins a new epoch, with offsets from
    /// 0.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Returns the offset of the oldest byte in the log.
    pub fn oldest(&self) -> u64 {
        self.oldest
    }

    /// Returns the offset that the next byte will have.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Returns the capacity of the log, in bytes.
    pub fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    /// Returns the number of bytes that can be appended without evicting the byte at `from` or a
    /// later one. Bytes that were evicted already do not count.
    pub fn capacity_from(&self, from: u64) -> usize {
        let required = self.next.saturating_sub(from.max(self.oldest));
        self.max_bytes.saturating_sub(usize::try_from(required).unwrap_or(usize::MAX))
    }

    /// Appends bytes and evicts the oldest ones beyond the capacity.
    pub fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.open.len() == self.open.capacity() {
                self.close_open();
                self.open = BytesMut::with_capacity(self.chunk_bytes());
            }
            let room = self.open.capacity() - self.open.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.open.extend_from_slice(now);
            self.next += now.len() as u64;
            self.evict_oldest();
            bytes = later;
        }
    }

    /// Evicts all bytes. Offsets continue.
    pub fn clear(&mut self) {
        self.oldest = self.next;
        self.closed.clear();
        self.open = BytesMut::new();
    }

    /// Reads up to `max` bytes (at least one) at offset `from`. May close the open chunk, which
    /// readers do not notice.
    pub fn read(&mut self, from: u64, max: usize) -> LogRead {
        if from < self.oldest {
            return LogRead::Gap { from, to: self.oldest };
        }
        if from >= self.next {
            return if from == self.next { LogRead::AtEnd } else { LogRead::Beyond };
        }
        let max = max.max(1);
        let open_from = self.next - self.open.len() as u64;
        if from >= open_from {
            let at = (from - open_from) as usize;
            let len = (self.open.len() - at).min(max);
            if len < COPY_BELOW_BYTES {
                return LogRead::Data {
                    offset: from,
                    bytes: Bytes::copy_from_slice(&self.open[at..at + len]),
                };
            }
            self.close_open();
        }
        // The chunk that holds `from` is the last one that does not start after it.
        let index = self.closed.partition_point(|chunk| chunk.offset <= from) - 1;
        let chunk = &self.closed[index];
        let at = (from - chunk.offset) as usize;
        let len = (chunk.bytes.len() - at).min(max).min(CHUNK_BYTES);
        LogRead::Data { offset: from, bytes: chunk.bytes.slice(at..at + len) }
    }

    /// Returns the size of the next chunk, in bytes. Chunks grow with the log, so that bytes are
    /// never moved and at most half of the allocation is empty.
    fn chunk_bytes(&self) -> usize {
        let held = (self.next - self.oldest) as usize;
        held.clamp(FIRST_CHUNK_BYTES, CHUNK_BYTES).min(self.max_bytes)
    }

    /// Makes the open bytes shareable. The rest of their buffer stays open.
    fn close_open(&mut self) {
        if !self.open.is_empty() {
            let bytes = self.open.split().freeze();
            self.closed.push_back(LogChunk { offset: self.next - bytes.len() as u64, bytes });
        }
    }

    fn evict_oldest(&mut self) {
        self.oldest = self.oldest.max(self.next.saturating_sub(self.max_bytes as u64));
        while let Some(first) = self.closed.front()
            && first.offset + first.bytes.len() as u64 <= self.oldest
        {
            self.closed.pop_front();
        }
    }
}
