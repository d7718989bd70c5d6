//! Reads the entries of a zip. Checks the local header, data and data descriptor of each against
//! the central directory, and decodes the data.

use flate2::{Crc, Decompress, FlushDecompress, Status};

use super::{
    contents::ContentSender,
    directory::{CentralHeader, LittleEndianFields, Zip64Extra},
    reader::ObjectReader,
};
use crate::backup_store::error::BackupStoreError;

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

/// Reads entries in order. Reuses its decompressor and buffer.
pub(super) struct EntryReader {
    inflate: Decompress,
    bytes: Vec<u8>,
}

/// Why reading an entry failed.
pub(super) enum EntryError {
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
    pub(super) fn new() -> Self {
        Self { inflate: Decompress::new(false), bytes: Vec::new() }
    }

    /// Reads the entry with the header `central`. `end` is the position at which the next entry or
    /// the central directory begins.
    pub(super) fn read(
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
