//! Reads the structure and the content of a zip on disk, which may be malicious. Checks only what
//! is needed to continue reading, and the size and checksum of content; `inspect` checks the rest.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
};

use flate2::{Decompress, FlushDecompress, Status};

use super::{
    CENTRAL_LEN, CENTRAL_SIGNATURE, CentralRecord, END_LEN, END_SIGNATURE, END64_LEN, END64_SIGNATURE,
    FIELD_EXACT_TIME, FIELD_HARD_LINK, FIELD_TIMES, FIELD_ZIP64, LOCAL_LEN, LOCAL_SIGNATURE, LOCATOR64_LEN,
    LOCATOR64_SIGNATURE, STORED, STREAMED, ZIP64_MARKER16, ZIP64_MARKER32,
};
use crate::archive::{ArchiveError, MAX_ENTRIES, spool_error};

/// Maximum bytes of the comment at the end of a zip.
const MAX_COMMENT: usize = 65_535;

/// Bytes read and passed on at once.
const PIECE_BYTES: usize = 128 * 1024;

/// A zip with the offsets of its entries.
#[derive(Debug)]
pub(in crate::archive) struct ZipReader {
    file: File,
    /// Offset of the central directory; all content lies before it.
    directory: u64,
    /// Offset of each central header.
    index: Vec<u64>,
}

impl ZipReader {
    /// Reads the end records and indexes the central directory.
    pub(in crate::archive) fn open(file: File) -> Result<Self, ArchiveError> {
        let size = file.metadata().map_err(spool_error)?.len();
        let (end, tail) = find_end(&file, size)?;
        let number = |at: usize| u64::from(u16_at(&tail, at));
        if number(4) != 0 || number(6) != 0 || number(8) != number(10) {
            return Err(ArchiveError::bad_zip("it is one of several volumes"));
        }
        let (mut entries, mut length, mut start) =
            (number(10), u64::from(u32_at(&tail, 12)), u64::from(u32_at(&tail, 16)));
        let mut behind = end;
        let marked = entries == u64::from(ZIP64_MARKER16)
            || length == u64::from(ZIP64_MARKER32)
            || start == u64::from(ZIP64_MARKER32);
        if marked && let Some((at, record)) = find_end64(&file, end)? {
            let wide = |at: usize| u64_at(&record, at);
            if u32_at(&record, 16) != 0 || u32_at(&record, 20) != 0 || wide(24) != wide(32) {
                return Err(ArchiveError::bad_zip("it is one of several volumes"));
            }
            (entries, length, start, behind) = (wide(32), wide(40), wide(48), at);
        }
        if entries > MAX_ENTRIES {
            return Err(ArchiveError::TooManyEntries { limit: MAX_ENTRIES });
        }
        if start.checked_add(length) != Some(behind) {
            return Err(ArchiveError::bad_zip("its central directory is not where its end record says"));
        }
        let index = index_directory(&file, start, length, entries)?;
        Ok(Self { file, directory: start, index })
    }

    pub(in crate::archive) fn len(&self) -> usize {
        self.index.len()
    }

    /// Reads entry `number` from the central directory.
    pub(super) fn record(&self, number: usize) -> Result<CentralRecord, ArchiveError> {
        let at = self.index[number];
        let mut head = [0; CENTRAL_LEN];
        read_exact(&self.file, &mut head, at)?;
        let (name, extra) = (usize::from(u16_at(&head, 28)), usize::from(u16_at(&head, 30)));
        let mut rest = vec![0; name + extra];
        read_exact(&self.file, &mut rest, at + CENTRAL_LEN as u64)?;
        let extra = rest.split_off(name);
        let mut record = CentralRecord {
            name: rest,
            flags: u16_at(&head, 8),
            method: u16_at(&head, 10),
            crc: u32_at(&head, 16),
            compressed_size: u32_at(&head, 20).into(),
            size: u32_at(&head, 24).into(),
            header: u32_at(&head, 42).into(),
            system: head[5],
            mode: u32_at(&head, 38) >> 16,
            modified: None,
            hard_link: false,
        };
        record.apply_extra_fields(&extra)?;
        Ok(record)
    }

    /// Returns the offset of an entry's content. Fails if the local header contradicts the central
    /// directory.
    pub(super) fn content(&self, record: &CentralRecord) -> Result<u64, ArchiveError> {
        let wrong = || {
            ArchiveError::bad_entry(&record.name, "its local header contradicts the zip's central directory")
        };
        let mut head = [0; LOCAL_LEN];
        if record.header.checked_add(LOCAL_LEN as u64).is_none_or(|end| end > self.directory) {
            return Err(ArchiveError::bad_entry(
                &record.name,
                "its header or data lies beyond the zip's entries",
            ));
        }
        read_exact(&self.file, &mut head, record.header)?;
        let (name, extra) = (usize::from(u16_at(&head, 26)), usize::from(u16_at(&head, 28)));
        let start = record.header + (LOCAL_LEN + name + extra) as u64;
        if u32_at(&head, 0) != LOCAL_SIGNATURE || name != record.name.len() || start > self.directory {
            return Err(wrong());
        }
        let mut again = vec![0; name];
        read_exact(&self.file, &mut again, record.header + LOCAL_LEN as u64)?;
        let same = again == record.name
            && u16_at(&head, 6) == record.flags
            && u16_at(&head, 8) == record.method
            && (record.flags & STREAMED != 0 || u32_at(&head, 14) == record.crc);
        if !same {
            return Err(wrong());
        }
        match start.checked_add(record.compressed_size) {
            Some(end) if end <= self.directory => Ok(start),
            _ => {
                Err(ArchiveError::bad_entry(&record.name, "its header or data lies beyond the zip's entries"))
            }
        }
    }

    /// Passes the content of an entry to `take`. Checks its declared size and checksum.
    pub(super) fn decode(
        &self,
        record: &CentralRecord,
        decoder: &mut Decoder,
        take: impl FnMut(&[u8]) -> Result<(), ArchiveError>,
    ) -> Result<(), ArchiveError> {
        let start = self.content(record)?;
        decoder.decode(&self.file, record, start, take)
    }
}

impl CentralRecord {
    /// Applies the extra fields, which hold 64-bit sizes and finer times.
    fn apply_extra_fields(&mut self, mut extra: &[u8]) -> Result<(), ArchiveError> {
        let short = ArchiveError::bad_entry(&self.name, "its extra fields are cut short");
        while let [a, b, c, d, rest @ ..] = extra {
            let (id, length) = (u16::from_le_bytes([*a, *b]), usize::from(u16::from_le_bytes([*c, *d])));
            let Some((value, after)) = rest.split_at_checked(length) else { return Err(short) };
            extra = after;
            match id {
                FIELD_ZIP64 => {
                    let mut values = value.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
                    for wide in [&mut self.size, &mut self.compressed_size, &mut self.header] {
                        if *wide == u64::from(ZIP64_MARKER32) {
                            *wide = values.next().ok_or_else(|| short.clone())?;
                        }
                    }
                }
                // Bit 0: the field has a modification time.
                FIELD_TIMES if value.len() >= 5 && value[0] & 1 != 0 && self.modified.is_none() => {
                    self.modified = Some((u32_at(value, 1).cast_signed().into(), 0));
                }
                FIELD_HARD_LINK => self.hard_link = true,
                FIELD_EXACT_TIME if value.len() == 12 && u32_at(value, 8) < 1_000_000_000 => {
                    self.modified = Some((u64_at(value, 0).cast_signed(), u32_at(value, 8)));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Finds the end record, which must be at the end of the file.
fn find_end(file: &File, size: u64) -> Result<(u64, Vec<u8>), ArchiveError> {
    let none = ArchiveError::bad_zip("it has no end record, so it is not a zip or was cut short");
    let length = size.min((END_LEN + MAX_COMMENT) as u64);
    let mut tail = vec![0; length as usize];
    read_exact(file, &mut tail, size - length)?;
    for at in (0..=tail.len().saturating_sub(END_LEN)).rev() {
        let Some(end) = tail.get(at..at + END_LEN) else { break };
        if u32_at(end, 0) == END_SIGNATURE && at + END_LEN + usize::from(u16_at(end, 20)) == tail.len() {
            return Ok((size - length + at as u64, end.to_vec()));
        }
    }
    Err(none)
}

/// Reads the zip64 end record, if its locator stands right before the end record.
fn find_end64(file: &File, end: u64) -> Result<Option<(u64, [u8; END64_LEN])>, ArchiveError> {
    let Some(at) = end.checked_sub(LOCATOR64_LEN as u64) else { return Ok(None) };
    let mut locator = [0; LOCATOR64_LEN];
    read_exact(file, &mut locator, at)?;
    if u32_at(&locator, 0) != LOCATOR64_SIGNATURE {
        return Ok(None);
    }
    let wrong = ArchiveError::bad_zip("its zip64 end record is not where its locator says");
    let start = u64_at(&locator, 8);
    if start.checked_add(END64_LEN as u64) != Some(at) {
        return Err(wrong);
    }
    let mut record = [0; END64_LEN];
    read_exact(file, &mut record, start)?;
    if u32_at(&record, 0) != END64_SIGNATURE { Err(wrong) } else { Ok(Some((start, record))) }
}

/// Returns the offset of each header in the central directory.
fn index_directory(file: &File, start: u64, length: u64, entries: u64) -> Result<Vec<u64>, ArchiveError> {
    let wrong = || ArchiveError::bad_zip("its central directory is damaged");
    // The zip may declare any count. The directory must be large enough for it.
    if entries.saturating_mul(CENTRAL_LEN as u64) > length {
        return Err(wrong());
    }
    let mut index = Vec::with_capacity(entries as usize);
    let mut reader = BufReader::new(file);
    reader.seek(SeekFrom::Start(start)).map_err(spool_error)?;
    let (mut at, end) = (start, start + length);
    let mut head = [0; CENTRAL_LEN];
    for _ in 0..entries {
        if end - at < CENTRAL_LEN as u64 {
            return Err(wrong());
        }
        reader.read_exact(&mut head).map_err(spool_error)?;
        let more = i64::from(u16_at(&head, 28)) + i64::from(u16_at(&head, 30)) + i64::from(u16_at(&head, 32));
        if u32_at(&head, 0) != CENTRAL_SIGNATURE || end - at - (CENTRAL_LEN as u64) < more.unsigned_abs() {
            return Err(wrong());
        }
        index.push(at);
        reader.seek_relative(more).map_err(spool_error)?;
        at += CENTRAL_LEN as u64 + more.unsigned_abs();
    }
    if at == end { Ok(index) } else { Err(wrong()) }
}

/// Fills `bytes` from offset `at`. A read past the end of the file is reported as an error of the
/// zip.
fn read_exact(file: &File, bytes: &mut [u8], at: u64) -> Result<(), ArchiveError> {
    file.read_exact_at(bytes, at).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => ArchiveError::bad_zip("it is cut short"),
        _ => spool_error(error).into(),
    })
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// Decoder with its buffers, owned by one thread.
#[derive(Debug)]
pub(in crate::archive) struct Decoder {
    inflate: Decompress,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Decoder {
    pub(in crate::archive) fn new() -> Self {
        Self { inflate: Decompress::new(false), input: vec![0; PIECE_BYTES], output: vec![0; PIECE_BYTES] }
    }

    /// Passes the content of an entry, which begins at `start` in the file, to `take`.
    fn decode(
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
            let now = self.fill(file, at, left)?;
            give(&self.input[..now])?;
            (at, left) = (at + now as u64, left - now as u64);
        }
        Ok(())
    }

    /// Reads up to `left` bytes into the input buffer, and returns their number.
    fn fill(&mut self, file: &File, at: u64, left: u64) -> Result<usize, ArchiveError> {
        let now = PIECE_BYTES.min(usize::try_from(left).unwrap_or(PIECE_BYTES));
        file.read_exact_at(&mut self.input[..now], at).map_err(spool_error)?;
        Ok(now)
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
                let now = self.fill(file, at, left)?;
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
