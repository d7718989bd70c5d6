//! Parses the central directory of a zip, in order and in bounded memory.
//!
//! Rejects all features that other zip readers could interpret differently: comments, further
//! volumes, and bytes between the directory and its end record.

use std::ops::Range;

use super::reader::ObjectReader;
use crate::backup_store::error::BackupStoreError;

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

/// The position of the central directory and the number of its entries, from the end records.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct EndOfDirectory {
    pub(super) directory: Range<u64>,
    pub(super) entries: u64,
}

/// The header of an entry in the central directory.
#[derive(Debug)]
pub(super) struct CentralHeader {
    pub(super) name: Vec<u8>,
    pub(super) flags: u16,
    pub(super) method: u16,
    /// Modification time and date in DOS format.
    pub(super) time: u32,
    pub(super) crc: u32,
    /// Size of the compressed data, in bytes.
    pub(super) packed: u64,
    /// Size of the content, in bytes.
    pub(super) size: u64,
    /// Position of the local header in the zip, in bytes.
    pub(super) offset: u64,
    /// Unix file type and permissions.
    pub(super) mode: u32,
}

/// Reads little-endian numbers at fixed offsets. Numbers beyond the end are 0.
pub(super) struct LittleEndianFields<'a>(pub(super) &'a [u8]);

impl LittleEndianFields<'_> {
    pub(super) fn u16(&self, at: usize) -> u16 {
        self.array(at).map_or(0, u16::from_le_bytes)
    }

    pub(super) fn u32(&self, at: usize) -> u32 {
        self.array(at).map_or(0, u32::from_le_bytes)
    }

    pub(super) fn u64(&self, at: usize) -> u64 {
        self.array(at).map_or(0, u64::from_le_bytes)
    }

    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..at + N)?.try_into().ok()
    }
}

impl EndOfDirectory {
    /// Parses the end records of a zip of `size` bytes. `tail` is the last [`TAIL_BYTES`] of the
    /// zip, or all of a smaller one. `None` if the records are not valid.
    pub(super) fn read(tail: &[u8], size: u64) -> Option<Self> {
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
    pub(super) fn read(
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
pub(super) struct Zip64Extra<'a>(&'a [u8]);

impl<'a> Zip64Extra<'a> {
    const TAG: u16 = 1;

    pub(super) fn of(mut extra: &'a [u8]) -> Self {
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
    pub(super) fn or(&mut self, short: u32) -> Option<u64> {
        if short != u32::MAX {
            return Some(short.into());
        }
        let (number, rest) = self.0.split_at_checked(8)?;
        self.0 = rest;
        Some(LittleEndianFields(number).u64(0))
    }
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
