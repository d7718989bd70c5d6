//! The byte log: the newest bytes that a terminal or a process printed, each with a position for ever.
//!
//! Pure: no clock, no waking, no lock. Many readers share one log, each with an offset of its own; what they read are slices of
//! the log's own chunks. Must not know who writes or reads.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

#[cfg(test)]
mod tests;

/// Largest chunk, and so the longest slice one [`ByteLog::read`] gives: what one message carries at most.
pub const CHUNK_BYTES: usize = 64 * 1024;
/// First chunk: a prompt fits, and an idle log costs no more.
const FIRST_CHUNK_BYTES: usize = 512;
/// Reads of the open chunk below this are copied, others close the part they read. So a log read keystroke by keystroke is not
/// cut into thousands of slices, and a flood is not copied.
const COPY_BELOW_BYTES: usize = 4 * 1024;

/// The newest bytes of one stream of output, at most a fixed number of them.
#[derive(Debug)]
pub struct ByteLog {
    epoch: u64,
    max_bytes: usize,
    oldest: u64,
    next: u64,
    /// Without holes; the first may begin before `oldest` by what has been let go of it already.
    closed: VecDeque<LogChunk>,
    /// What came last; begins where `closed` ends. Never outgrows its capacity.
    open: BytesMut,
}

#[derive(Debug)]
struct LogChunk {
    offset: u64,
    bytes: Bytes,
}

/// What a log has at an offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogRead {
    /// Bytes `[from, to)` are no longer held; go on at `to`.
    Gap {
        /// Where the reader was.
        from: u64,
        /// The oldest byte that is held.
        to: u64,
    },
    /// At least one byte.
    Data {
        /// Of the first byte.
        offset: u64,
        /// At most [`CHUNK_BYTES`].
        bytes: Bytes,
    },
    /// Nothing yet: the reader has everything.
    AtEnd,
    /// No byte with this offset has been written.
    Beyond,
}

impl ByteLog {
    /// An empty log that will hold the newest `max_bytes` (at least 1). Allocates nothing.
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

    /// Which life of the log this is.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Offset of the oldest byte that is held.
    pub fn oldest(&self) -> u64 {
        self.oldest
    }

    /// Offset that the next byte will have.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// How many bytes are held at most.
    pub fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    /// Appends; the oldest bytes make room.
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

    /// Lets go of all that is held; positions go on.
    pub fn clear(&mut self) {
        self.oldest = self.next;
        self.closed.clear();
        self.open = BytesMut::new();
    }

    /// What there is at `from`, at most `max` bytes (at least one) of it. Changes nothing that a reader could see.
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
        // The chunk that holds `from`: the last one that does not begin behind it.
        let index = self.closed.partition_point(|chunk| chunk.offset <= from) - 1;
        let chunk = &self.closed[index];
        let at = (from - chunk.offset) as usize;
        let len = (chunk.bytes.len() - at).min(max).min(CHUNK_BYTES);
        LogRead::Data { offset: from, bytes: chunk.bytes.slice(at..at + len) }
    }

    /// Chunks grow with the log, so nothing is ever moved and at most half of what is allocated is empty.
    fn chunk_bytes(&self) -> usize {
        let held = (self.next - self.oldest) as usize;
        held.clamp(FIRST_CHUNK_BYTES, CHUNK_BYTES).min(self.max_bytes)
    }

    /// Makes the open bytes shareable; what is left of their buffer stays open.
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
