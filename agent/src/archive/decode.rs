//! Decodes the content of a zip entry and checks its declared size and checksum.

use std::{fs::File, os::unix::fs::FileExt};

use flate2::{Decompress, FlushDecompress, Status};

use super::{
    error::{ArchiveError, spool_error},
    layout::STORED,
    read::CentralRecord,
};

/// Bytes read and passed on at once.
const PIECE_BYTES: usize = 128 * 1024;

/// Decoder with its buffers, owned by one thread.
#[derive(Debug)]
pub(super) struct Decoder {
    inflate: Decompress,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self { inflate: Decompress::new(false), input: vec![0; PIECE_BYTES], output: vec![0; PIECE_BYTES] }
    }

    /// Passes the content of an entry, which begins at `start` in the file, to `take`.
    pub(super) fn decode(
        &mut self,
        file: &File,
        record: &CentralRecord,
        start: u64,
        mut take: impl FnMut(&[u8]) -> Result<(), ArchiveError>,
    ) -> Result<(), ArchiveError> {
        let (mut crc, mut size) = (crc32fast::Hasher::new(), 0);
        let wrong = |cause| ArchiveError::bad_entry(&record.name, cause);
        let mut give = |bytes: &[u8]| {
            size += bytes.len() as u64;
            if size > record.size {
                return Err(wrong("it holds more than it declares"));
            }
            crc.update(bytes);
            take(bytes)
        };
        if record.method == STORED {
            self.copy(file, start, record.compressed_size, &mut give)?;
        } else {
            self.inflate(file, start, record, &mut give)?;
        }
        if size != record.size {
            return Err(wrong("it holds less than it declares"));
        }
        if crc.finalize() != record.crc {
            return Err(wrong("its checksum is wrong"));
        }
        Ok(())
    }

    fn copy(
        &mut self,
        file: &File,
        mut at: u64,
        mut left: u64,
        give: &mut impl FnMut(&[u8]) -> Result<(), ArchiveError>,
    ) -> Result<(), ArchiveError> {
        while left > 0 {
            let now = PIECE_BYTES.min(usize::try_from(left).unwrap_or(PIECE_BYTES));
            file.read_exact_at(&mut self.input[..now], at).map_err(spool_error)?;
            give(&self.input[..now])?;
            (at, left) = (at + now as u64, left - now as u64);
        }
        Ok(())
    }

    fn inflate(
        &mut self,
        file: &File,
        mut at: u64,
        record: &CentralRecord,
        give: &mut impl FnMut(&[u8]) -> Result<(), ArchiveError>,
    ) -> Result<(), ArchiveError> {
        let damaged = || ArchiveError::bad_entry(&record.name, "its content is damaged");
        self.inflate.reset(false);
        let (mut left, mut have) = (record.compressed_size, 0..0);
        loop {
            if have.is_empty() && left > 0 {
                let now = PIECE_BYTES.min(usize::try_from(left).unwrap_or(PIECE_BYTES));
                file.read_exact_at(&mut self.input[..now], at).map_err(spool_error)?;
                (at, left, have) = (at + now as u64, left - now as u64, 0..now);
            }
            let (took, gave) = (self.inflate.total_in(), self.inflate.total_out());
            let status = self
                .inflate
                .decompress(&self.input[have.clone()], &mut self.output, FlushDecompress::None)
                .map_err(|_| damaged())?;
            let (took, gave) = (self.inflate.total_in() - took, self.inflate.total_out() - gave);
            have.start += took as usize;
            give(&self.output[..gave as usize])?;
            match status {
                // An entry must not hold bytes after the end of its deflate stream.
                Status::StreamEnd if have.is_empty() && left == 0 => return Ok(()),
                Status::StreamEnd => return Err(damaged()),
                Status::Ok | Status::BufError if took == 0 && gave == 0 => return Err(damaged()),
                Status::Ok | Status::BufError => {}
            }
        }
    }
}
