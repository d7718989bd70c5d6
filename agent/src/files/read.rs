//! Reads the content of a file.
//!
//! The range is fixed when the file is opened. Bytes that are appended later are not sent. If the
//! file becomes shorter, the stream ends with [`FileError::Shrunk`]. One block is read ahead while
//! the previous one is sent, so that disk and network work in parallel. A client that does not read
//! holds two blocks and no thread.

use std::{cmp::min, os::fd::OwnedFd, sync::Arc};

use bytes::Bytes;
use futures_util::{Stream, stream};
use rustix::{buffer::spare_capacity, io::Errno};
use tokio::{sync::OwnedSemaphorePermit, task::JoinHandle};

use super::{
    FileError,
    list::FileEntry,
    map_errno,
    root::{RelPath, WorkspaceRoot},
};

/// Maximum bytes of one piece, which is one message on the wire.
pub const PIECE_BYTES: usize = 256 * 1024;
const BLOCK_BYTES: usize = 1024 * 1024;

/// An open file and the range of it that is to be read.
#[derive(Debug)]
pub struct FileReader {
    /// Metadata at the time of opening.
    pub entry: FileEntry,
    /// Offset of the first byte.
    pub start: u64,
    /// Offset after the last byte.
    pub end: u64,
    path: RelPath,
    file: Arc<OwnedFd>,
    permit: OwnedSemaphorePermit,
}

impl FileReader {
    pub(super) fn open(
        root: &WorkspaceRoot,
        path: RelPath,
        permit: OwnedSemaphorePermit,
    ) -> Result<Self, FileError> {
        let (file, stat) = root.open_file(&path)?;
        let name = path.split().map(|(_, name)| name.to_owned()).unwrap_or_default();
        let entry = FileEntry::new(&name, &stat, Vec::new());
        let end = entry.size;
        Ok(Self { entry, start: 0, end, path, file: Arc::new(file), permit })
    }

    /// Narrows the range to `length` bytes from `offset` on, or to all bytes from there if `length`
    /// is `None`.
    pub fn range(mut self, offset: u64, length: Option<u64>) -> Result<Self, FileError> {
        let size = self.entry.size;
        if offset > size {
            return Err(FileError::BadOffset { path: self.path.to_string(), offset, size });
        }
        self.start = offset;
        self.end = length.map_or(size, |length| min(size, offset.saturating_add(length)));
        Ok(self)
    }

    /// Streams the bytes in pieces of [`PIECE_BYTES`] at most.
    pub fn pieces(self) -> impl Stream<Item = Result<Bytes, FileError>> + Send + 'static {
        let pieces = PieceReader {
            at: self.start,
            end: self.end,
            path: self.path,
            file: self.file,
            ready: Bytes::new(),
            ahead: None,
            _permit: self.permit,
        };
        stream::try_unfold(pieces, |mut pieces| async move {
            Ok(pieces.next().await?.map(|piece| (piece, pieces)))
        })
    }
}

/// A block that the blocking pool reads.
struct ReadAhead {
    at: u64,
    length: u64,
    read: JoinHandle<Result<Bytes, Errno>>,
}

struct PieceReader {
    /// Offset of the next block to read.
    at: u64,
    end: u64,
    path: RelPath,
    file: Arc<OwnedFd>,
    ready: Bytes,
    ahead: Option<ReadAhead>,
    _permit: OwnedSemaphorePermit,
}

impl PieceReader {
    async fn next(&mut self) -> Result<Option<Bytes>, FileError> {
        if self.ready.is_empty() {
            let Some(block) = self.ahead.take().or_else(|| self.read_ahead()) else {
                return Ok(None);
            };
            let read = block.read.await.map_err(|_| FileError::Fault { operation: "reading a file" })?;
            self.ready = read.map_err(map_errno("read", &self.path))?;
            let got = self.ready.len() as u64;
            if got < block.length {
                return Err(FileError::Shrunk { path: self.path.to_string(), end: block.at + got });
            }
            self.ahead = self.read_ahead();
        }
        Ok(Some(self.ready.split_to(min(self.ready.len(), PIECE_BYTES))))
    }

    fn read_ahead(&mut self) -> Option<ReadAhead> {
        let (at, length) = (self.at, min(self.end - self.at, BLOCK_BYTES as u64));
        if length == 0 {
            return None;
        }
        self.at += length;
        let file = self.file.clone();
        let read = tokio::task::spawn_blocking(move || read_block(&file, at, length as usize));
        Some(ReadAhead { at, length, read })
    }
}

/// Reads `length` bytes, or fewer at the end of the file.
fn read_block(file: &OwnedFd, at: u64, length: usize) -> Result<Bytes, Errno> {
    let mut block = Vec::with_capacity(length);
    while block.len() < length {
        let from = at + block.len() as u64;
        match rustix::io::pread(file, spare_capacity(&mut block), from) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(block.into())
}
