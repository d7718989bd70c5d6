//! x

use std::{
    ops::Range,
    sync::mpsc::{Receiver, SyncSender},
};

use flate2::{Crc, Decompress, FlushDecompress, Status};

use super::ObjectReader;
use crate::backup_store::{
    error::BackupStoreError,
    sidecar::{Hasher, Sha256Digest},
};

const END: u32 = 0x0605_4b50;
const END_BYTES: u64 = 22;
const LOCATOR: u32 = 0x0706_4b50;
const LOCATOR_BYTES: u64 = 20;
const END64: u32 = 0x0606_4b50;
const END64_BYTES: u64 = 56;
const HEADER: u32 = 0x0201_4b50;
const HEADER_BYTES: usize = 46;
/// Size of all end records of a zip together, in bytes.
pub(super) const TAIL_BYTES: u64 = END_BYTES + LOCATOR_BYTES + END64_BYTES;
const LOCAL: u32 = 0x0403_4b50;
const LOCAL_BYTES: usize = 30;
const DESCRIPTOR: u32 = 0x0807_4b50;
/// A data descriptor with sizes and checksum follows the data.
const FLAG_DESCRIPTOR: u16 = 1 << 3;
/// The name is encoded in UTF-8.
const FLAG_UTF8: u16 = 1 << 11;
/// The effort of the compressor, which has no effect on decoding.
const FLAGS_EFFORT: u16 = 0b110;
const STORED: u16 = 0;
const DEFLATED: u16 = 8;
/// Size of one block, in bytes.
const BLOCK_BYTES: usize = 256 * 1024;
/// Maximum number of queued blocks. While the queue is full, decoding waits for hashing.
pub(super) const MAX_BLOCKS: usize = 4;

/// The position of the central directory and the number of its entries, from the end records.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct EndOfDirectory {
    pub(crate) directory: Range<u64>,
    pub(crate) entries: u64,
}

/// The header of an entry in the central directory.
#[derive(Debug)]
pub(crate) struct CentralHeader {
    pub(crate) name: Vec<u8>,
    flags: u16,
    method: u16,
    /// Modification time and date in DOS format.
    time: u32,
    crc: u32,
    /// Size of the compressed data, in bytes.
    packed: u64,
    /// Size of the content, in bytes.
    pub(crate) size: u64,
    /// Position of the local header in the zip, in bytes.
    pub(crate) offset: u64,
    /// Unix file type and permissions.
    pub(crate) mode: u32,
}

/// Reads little-endian numbers at fixed offsets. Numbers beyond the end are 0.
struct LittleEndianFields<'a>(pub(super) &'a [u8]);

impl LittleEndianFields<'_> {
    fn u16(&self, at: usize) -> u16 {
        self.array(at).map_or(0, u16::from_le_bytes)
    }

    fn u32(&self, at: usize) -> u32 {
        self.array(at).map_or(0, u32::from_le_bytes)
    }

    fn u64(&self, at: usize) -> u64 {
        self.array(at).map_or(0, u64::from_le_bytes)
    }

    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..at + N)?.try_into().ok()
    }
}

impl EndOfDirectory {
    /// Parses the end records of a zip of `size` bytes. `tail` is the last [`TAIL_BYTES`] of the
    /// zip, or all of a smaller one. `None` if the records are not valid.
    pub(crate) fn read(tail: &[u8], size: u64) -> Option<Self> {
        let begins = size.checked_sub(tail.len() as u64)?;
        let (before, end) = tail.split_at_checked(tail.len().checked_sub(END_BYTES as usize)?)?;
        let end = LittleEndianFields(end);
        let (disks, here, all) = (end.u32(4), end.u16(8), end.u16(10));
        let (bytes, offset) = (end.u32(12), end.u32(16));
        if end.u32(0) != END || disks != 0 || here != all || end.u16(20) != 0 {
            return None;
        }
        if all != u16::MAX && bytes != u32::MAX && offset != u32::MAX {
            return Self::at(offset.into(), bytes.into(), all.into(), begins + before.len() as u64);
        }
        let (record, locator) = before.split_at_checked(END64_BYTES as usize)?;
        let (record, locator) = (LittleEndianFields(record), LittleEndianFields(locator));
        let located = locator.u32(0) == LOCATOR
            && locator.u32(4) == 0
            && locator.u64(8) == begins
            && locator.u32(16) == 1;
        let whole = record.u32(0) == END64 && record.u64(4) == END64_BYTES - 12 && record.u64(16) == 0;
        let entries = record.u64(32);
        if !located || !whole || record.u64(24) != entries {
            return None;
        }
        let fits = |short: u32, most: u32, long: u64| short == most || u64::from(short) == long;
        let agree = fits(all.into(), u16::MAX.into(), entries)
            && fits(bytes, u32::MAX, record.u64(40))
            && fits(offset, u32::MAX, record.u64(48));
        if !agree {
            return None;
        }
        Self::at(record.u64(48), record.u64(40), entries, begins)
    }

    fn at(offset: u64, bytes: u64, entries: u64, ends: u64) -> Option<Self> {
        (offset.checked_add(bytes)? == ends).then_some(Self { directory: offset..ends, entries })
    }
}

impl CentralHeader {
    /// Reads the next header; `None` at the end of the directory. The inner error says what is
    /// wrong with the header.
    pub(crate) fn read(
        reader: &mut ObjectReader,
    ) -> Result<Option<Result<Self, &'static str>>, BackupStoreError> {
        if reader.next()?.is_empty() {
            return Ok(None);
        }
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        if !reader.take(HEADER_BYTES, &mut bytes)? || LittleEndianFields(&bytes).u32(0) != HEADER {
            return Ok(Some(Err("the zip's central directory has an invalid entry")));
        }
        let header = LittleEndianFields(&bytes);
        let (name, extra, comment) = (header.u16(28), header.u16(30), header.u16(32));
        let mut rest = Vec::new();
        if !reader.take(usize::from(name) + usize::from(extra), &mut rest)? {
            return Ok(Some(Err("the zip's central directory ends in the middle of an entry")));
        }
        if comment != 0 || header.u16(34) != 0 {
            return Ok(Some(Err(
                "the zip's central directory has an entry with a comment or in another volume",
            )));
        }
        let (name, extra) = rest.split_at(name.into());
        let mut wide = Zip64Extra::of(extra);
        let size = wide.or(header.u32(24));
        let packed = wide.or(header.u32(20));
        let offset = wide.or(header.u32(42));
        let (Some(size), Some(packed), Some(offset)) = (size, packed, offset) else {
            return Ok(Some(Err(
                "the zip's central directory has an entry without its Zip64 sizes or offset",
            )));
        };
        Ok(Some(Ok(Self {
            name: name.to_vec(),
            flags: header.u16(8),
            method: header.u16(10),
            time: header.u32(12),
            crc: header.u32(16),
            packed,
            size,
            offset,
            mode: header.u32(38) >> 16,
        })))
    }
}

/// The 64-bit values of a zip64 extra field. It contains only the values that the header omits.
struct Zip64Extra<'a>(&'a [u8]);

impl<'a> Zip64Extra<'a> {
    const TAG: u16 = 1;

    fn of(mut extra: &'a [u8]) -> Self {
        while extra.len() >= 4 {
            let fields = LittleEndianFields(extra);
            let (tag, length) = (fields.u16(0), usize::from(fields.u16(2)));
            let Some(content) = extra.get(4..4 + length) else { break };
            if tag == Self::TAG {
                return Self(content);
            }
            extra = &extra[4 + length..];
        }
        Self(&[])
    }

    /// Returns `short`, or the next value of the extra field if `short` is the marker
    /// `0xffff_ffff`. `None` if the field has no further value.
    fn or(&mut self, short: u32) -> Option<u64> {
        if short != u32::MAX {
            return Some(short.into());
        }
        let (number, rest) = self.0.split_at_checked(8)?;
        self.0 = rest;
        Some(LittleEndianFields(number).u64(0))
    }
}

/// Reads entries in order. Reuses its decompressor and buffer.
pub(crate) struct EntryReader {
    inflate: Decompress,
    bytes: Vec<u8>,
}

/// Why reading an entry failed.
pub(crate) enum EntryError {
    /// The entry contradicts the central directory or cannot be decoded.
    Damaged(String),
    Failed(BackupStoreError),
    /// The hashing thread has found a mismatch.
    ReceiverClosed,
}

impl From<BackupStoreError> for EntryError {
    fn from(error: BackupStoreError) -> Self {
        Self::Failed(error)
    }
}

fn damaged(problem: &str) -> EntryError {
    EntryError::Damaged(problem.to_owned())
}

impl EntryReader {
    pub(crate) fn new() -> Self {
        Self { inflate: Decompress::new(false), bytes: Vec::new() }
    }

    /// Reads the entry with the header `central`. `end` is the position at which the next entry or
    /// the central directory begins.
    pub(crate) fn read(
        &mut self,
        zip: &mut ObjectReader,
        central: &CentralHeader,
        end: u64,
        contents: &mut ContentSender,
    ) -> Result<(), EntryError> {
        if zip.at() != central.offset {
            return Err(damaged("it does not begin where the entry before it ends"));
        }
        self.header(zip, central)?;
        let behind = zip.at().checked_add(central.packed).and_then(|data_end| end.checked_sub(data_end));
        let behind = behind.ok_or_else(|| damaged("it does not end before the next begins"))?;
        let crc = match central.method {
            STORED => stored(zip, central, contents)?,
            DEFLATED => self.inflated(zip, central, contents)?,
            _ => return Err(damaged("its compression method is not supported")),
        };
        if crc != central.crc {
            return Err(damaged("its checksum does not match its content"));
        }
        self.descriptor(zip, central, behind)
    }

    /// Checks the local header against the central directory.
    fn header(&mut self, zip: &mut ObjectReader, central: &CentralHeader) -> Result<(), EntryError> {
        let odd = central.flags & !(FLAG_DESCRIPTOR | FLAG_UTF8 | FLAGS_EFFORT) != 0;
        let text = std::str::from_utf8(&central.name).is_ok();
        let marked = central.flags & FLAG_UTF8 != 0;
        if odd || (marked && !text) || (!marked && text && !central.name.is_ascii()) {
            return Err(damaged("its flags are not valid"));
        }
        self.bytes.clear();
        let whole = zip.take(LOCAL_BYTES, &mut self.bytes)?;
        let fields = LittleEndianFields(&self.bytes);
        let (name, extra) = (usize::from(fields.u16(26)), usize::from(fields.u16(28)));
        if !whole || fields.u32(0) != LOCAL || !zip.take(name + extra, &mut self.bytes)? {
            return Err(damaged("its local header is missing"));
        }
        let header = LittleEndianFields(&self.bytes);
        let rest = &self.bytes[LOCAL_BYTES..];
        let mut wide = Zip64Extra::of(&rest[name..]);
        let (size, packed) = (wide.or(header.u32(22)), wide.or(header.u32(18)));
        // With a data descriptor, the local header may omit sizes and checksum.
        let later = central.flags & FLAG_DESCRIPTOR != 0;
        let same = |here: u64, there: u64| here == there || (later && here == 0);
        let agrees = header.u16(6) == central.flags
            && header.u16(8) == central.method
            && header.u32(10) == central.time
            && same(header.u32(14).into(), central.crc.into())
            && same(size.unwrap_or_default(), central.size)
            && same(packed.unwrap_or_default(), central.packed)
            && rest[..name] == central.name[..];
        if agrees { Ok(()) } else { Err(damaged("its local header contradicts the zip's central directory")) }
    }

    fn inflated(
        &mut self,
        zip: &mut ObjectReader,
        central: &CentralHeader,
        contents: &mut ContentSender,
    ) -> Result<u32, EntryError> {
        let mut crc = Crc::new();
        let mut missing = central.packed;
        self.inflate.reset(false);
        loop {
            let next = zip.next()?;
            let input = &next[..next.len().min(usize::try_from(missing).unwrap_or(usize::MAX))];
            let buffer = contents.buffer().ok_or(EntryError::ReceiverClosed)?;
            let (taken, begins) = (self.inflate.total_in(), buffer.len());
            let status = self
                .inflate
                .decompress_vec(input, buffer, FlushDecompress::None)
                .map_err(|_| damaged("its data cannot be decompressed"))?;
            let taken = self.inflate.total_in() - taken;
            crc.update(&buffer[begins..]);
            let stuck = taken == 0 && buffer.len() == begins;
            zip.consume(usize::try_from(taken).unwrap_or_default());
            missing -= taken;
            if self.inflate.total_out() > central.size {
                return Err(damaged("it is larger than its header says"));
            }
            if matches!(status, Status::StreamEnd) {
                break;
            }
            if stuck {
                return Err(damaged("its data are incomplete"));
            }
        }
        if missing != 0 || self.inflate.total_out() != central.size {
            return Err(damaged("it is smaller than its header says"));
        }
        Ok(crc.sum())
    }

    /// Checks that the data is followed by nothing, or by a data descriptor that agrees with the
    /// central directory. `behind` is the number of bytes up to the next entry.
    fn descriptor(
        &mut self,
        zip: &mut ObjectReader,
        central: &CentralHeader,
        behind: u64,
    ) -> Result<(), EntryError> {
        let expected = if central.flags & FLAG_DESCRIPTOR != 0 { &[12_u64, 16, 20, 24][..] } else { &[0] };
        let (true, Ok(length)) = (expected.contains(&behind), usize::try_from(behind)) else {
            return Err(damaged("unexpected bytes follow its data"));
        };
        self.bytes.clear();
        if !zip.take(length, &mut self.bytes)? {
            return Err(damaged("the zip ends within its data descriptor"));
        }
        let wide = length >= 20;
        let mut said = Vec::with_capacity(length);
        if length % 8 == 0 && length > 0 {
            said.extend(DESCRIPTOR.to_le_bytes());
        }
        if length > 0 {
            said.extend(central.crc.to_le_bytes());
            for number in [central.packed, central.size] {
                said.extend(&number.to_le_bytes()[..if wide { 8 } else { 4 }]);
            }
        }
        if said == self.bytes {
            Ok(())
        } else {
            Err(damaged("its data descriptor contradicts the zip's central directory"))
        }
    }
}

fn stored(
    zip: &mut ObjectReader,
    central: &CentralHeader,
    contents: &mut ContentSender,
) -> Result<u32, EntryError> {
    if central.packed != central.size {
        return Err(damaged("it is not compressed, but its sizes differ"));
    }
    let mut crc = Crc::new();
    let mut missing = central.packed;
    while missing > 0 {
        let next = zip.next()?;
        let buffer = contents.buffer().ok_or(EntryError::ReceiverClosed)?;
        let count = next.len().min(buffer.capacity() - buffer.len());
        let count = count.min(usize::try_from(missing).unwrap_or(usize::MAX));
        if count == 0 {
            return Err(damaged("its data are incomplete"));
        }
        crc.update(&next[..count]);
        buffer.extend_from_slice(&next[..count]);
        zip.consume(count);
        missing -= count as u64;
    }
    Ok(crc.sum())
}

/// Contents of entries, and the positions at which entries end.
pub(crate) struct ContentBlock {
    bytes: Vec<u8>,
    ends: Vec<EntryEnd>,
}

struct EntryEnd {
    at: usize,
    path: Vec<u8>,
    expected: Sha256Digest,
}

/// The sending side of the queue, which the decoder uses.
pub(crate) struct ContentSender {
    block: ContentBlock,
    /// Size of `ends` in the block, in bytes. A block is sent when either `bytes` or `ends` is
    /// full.
    paths: usize,
    hashing: SyncSender<ContentBlock>,
}

impl ContentSender {
    pub(crate) fn new(hashing: SyncSender<ContentBlock>) -> Self {
        Self { block: ContentBlock::new(), paths: 0, hashing }
    }

    /// Returns the buffer to append contents to, with capacity for at least one more byte. `None`
    /// if the hashing thread has found a mismatch.
    fn buffer(&mut self) -> Option<&mut Vec<u8>> {
        if self.block.bytes.len() == self.block.bytes.capacity() || self.paths > BLOCK_BYTES {
            self.send()?;
        }
        Some(&mut self.block.bytes)
    }

    /// Ends an entry. The data since the end of the previous entry is the content of `path`, which
    /// should have the digest `expected`. `None` if the hashing thread has found a mismatch.
    pub(crate) fn end(&mut self, path: Vec<u8>, expected: Sha256Digest) -> Option<()> {
        self.paths += path.len() + size_of::<EntryEnd>();
        self.block.ends.push(EntryEnd { at: self.block.bytes.len(), path, expected });
        if self.paths > BLOCK_BYTES { self.send() } else { Some(()) }
    }

    /// Sends the last block.
    pub(crate) fn finish(mut self) {
        let _receiver_gone = self.send();
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn end(entries: u16, bytes: u32, offset: u32) -> Vec<u8> {
        let mut end = END.to_le_bytes().to_vec();
        end.extend([0; 4]);
        end.extend([entries.to_le_bytes(), entries.to_le_bytes()].concat());
        end.extend([bytes.to_le_bytes(), offset.to_le_bytes()].concat());
        end.extend([0; 2]);
        end
    }

    #[test]
    fn directory_must_end_at_its_end_record() {
        let read = |end: &[u8], size| EndOfDirectory::read(end, size);
        assert_eq!(read(&end(2, 50, 100), 172), Some(EndOfDirectory { directory: 100..150, entries: 2 }));
        assert_eq!(read(&end(2, 50, 100), 173), None, "a byte that belongs to no record");
        assert_eq!(read(&end(2, 50, 100), 171), None);
    }

    #[test]
    fn zip64_end_record_is_read() {
        let (entries, bytes, offset) = (70_000_u64, 5_000_000_u64, 6_000_000_000_u64);
        let mut tail = END64.to_le_bytes().to_vec();
        tail.extend(44_u64.to_le_bytes());
        tail.extend([45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        for number in [entries, entries, bytes, offset] {
            tail.extend(number.to_le_bytes());
        }
        tail.extend(LOCATOR.to_le_bytes());
        tail.extend([0; 4]);
        tail.extend((offset + bytes).to_le_bytes());
        tail.extend(1_u32.to_le_bytes());
        tail.extend(end(u16::MAX, bytes as u32, u32::MAX));
        let size = offset + bytes + TAIL_BYTES;
        assert_eq!(
            EndOfDirectory::read(&tail, size),
            Some(EndOfDirectory { directory: offset..offset + bytes, entries })
        );
        assert_eq!(EndOfDirectory::read(&tail, size + 1), None);
        tail[24] ^= 1;
        assert_eq!(EndOfDirectory::read(&tail, size), None, "two counts of the entries");
    }

    proptest! {
        #[test]
        fn parsing_any_bytes_does_not_panic(tail in prop::collection::vec(any::<u8>(), 0..120), size: u64) {
            let _any = EndOfDirectory::read(&tail, size);
            let mut wide = Zip64Extra::of(&tail);
            let _any = (wide.or(u32::MAX), wide.or(u32::MAX), wide.or(u32::MAX));
        }
    }
}
