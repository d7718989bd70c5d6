//! Reads a zip that may be damaged or malicious, in bounded memory. Checks the structure, that both
//! headers of an entry agree, and the size and checksum of content. Callers check what else they
//! rely on, such as names and kinds.

use std::{
    io::{self, BufRead},
    ops::Range,
};

use flate2::{Decompress, FlushDecompress, Status};

use crate::layout::{
    CENTRAL_SIGNATURE, DEFLATED, DESCRIPTOR_SIGNATURE, END_SIGNATURE, END64_LEN, END64_SIGNATURE,
    FIELD_EXACT_TIME, FIELD_HARD_LINK, FIELD_TIMES, FIELD_ZIP64, FLAG_STREAMED, LOCAL_SIGNATURE,
    LOCATOR64_LEN, LOCATOR64_SIGNATURE, STORED, UnixTime, ZIP64_MARKER16, ZIP64_MARKER32,
};

/// Length of the fixed part of a local header, in bytes.
pub const LOCAL_LEN: usize = 30;
/// Length of the fixed part of a header in the central directory, in bytes.
pub const CENTRAL_LEN: usize = 46;
const END_LEN: usize = 22;
/// Length of the id and the length before the value of an extra field, in bytes.
const FIELD_HEAD_LEN: usize = 4;
/// Maximum bytes of the comment at the end of a zip.
const MAX_COMMENT_BYTES: usize = 65_535;
/// Bytes of all end records of a zip without a comment.
pub const MIN_TAIL_BYTES: u64 = (END_LEN + LOCATOR64_LEN + END64_LEN) as u64;
/// Bytes of all end records of a zip with the longest comment.
pub const MAX_TAIL_BYTES: u64 = MIN_TAIL_BYTES + MAX_COMMENT_BYTES as u64;
/// Bytes of content that are decoded at once.
const PIECE_BYTES: usize = 128 * 1024;

const CONTRADICTION: &str = "its local header contradicts the zip's central directory";
const DAMAGED_CONTENT: &str = "its content is damaged";
const SEVERAL_VOLUMES: &str = "it is one of several volumes";

/// Why a zip or an entry of it cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ZipError {
    /// English text for people, about the zip or the entry ("its content is damaged").
    #[error("{0}")]
    Damaged(&'static str),
    /// An error of the source, other than its early end.
    #[error(transparent)]
    Io(io::Error),
}

impl From<io::Error> for ZipError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Damaged("it is truncated"),
            _ => Self::Io(error),
        }
    }
}

/// Why content was not passed on completely.
#[derive(Debug)]
pub enum ContentReadError<E> {
    Zip(ZipError),
    /// The receiver of the content failed.
    Receiver(E),
}

impl<E> From<ZipError> for ContentReadError<E> {
    fn from(error: ZipError) -> Self {
        Self::Zip(error)
    }
}

impl<E> From<io::Error> for ContentReadError<E> {
    fn from(error: io::Error) -> Self {
        Self::Zip(error.into())
    }
}

/// The position of the central directory and the number of its entries, from the end records.
#[derive(Debug, PartialEq, Eq)]
pub struct EndOfDirectory {
    pub directory: Range<u64>,
    pub entries: u64,
    /// Length of the comment at the end of the zip, in bytes.
    pub comment_bytes: u16,
    /// Whether a value equals the marker of zip64 although the zip has no zip64 records. Such a
    /// value is taken literally.
    pub lacks_zip64: bool,
}

impl EndOfDirectory {
    /// Parses the end records of a zip of `size` bytes. `tail` is its end, of at least
    /// [`MIN_TAIL_BYTES`], or all of a smaller zip. The comment must lie in `tail`.
    pub fn parse(tail: &[u8], size: u64) -> Result<Self, ZipError> {
        let is_end = |at: &usize| {
            let end = &tail[*at..];
            u32_at(end, 0) == END_SIGNATURE && END_LEN + usize::from(u16_at(end, 20)) == end.len()
        };
        let last = tail.len().checked_sub(END_LEN);
        let at = last.and_then(|last| (0..=last).rev().find(is_end));
        let begin = size.checked_sub(tail.len() as u64);
        let (Some(at), Some(begin)) = (at, begin) else {
            return Err(ZipError::Damaged("it has no end record, so it is not a zip or was cut short"));
        };
        let (before, end) = tail.split_at(at);
        let (here, all) = (u16_at(end, 8), u16_at(end, 10));
        let (short_length, short_start) = (u32_at(end, 12), u32_at(end, 16));
        if u32_at(end, 4) != 0 || here != all {
            return Err(ZipError::Damaged(SEVERAL_VOLUMES));
        }
        let (mut entries, mut length, mut start) = (all.into(), short_length.into(), short_start.into());
        let mut behind = begin + at as u64;
        let mut lacks_zip64 =
            all == ZIP64_MARKER16 || short_length == ZIP64_MARKER32 || short_start == ZIP64_MARKER32;
        if lacks_zip64
            && let Some((before, locator)) = before.split_last_chunk::<LOCATOR64_LEN>()
            && u32_at(locator, 0) == LOCATOR64_SIGNATURE
        {
            let misplaced = ZipError::Damaged("its zip64 end record is not where its locator says");
            let Some((_, record)) = before.split_last_chunk::<END64_LEN>() else { return Err(misplaced) };
            behind -= MIN_TAIL_BYTES - END_LEN as u64;
            lacks_zip64 = false;
            let is_record = u32_at(record, 0) == END64_SIGNATURE
                && u64_at(record, 4) == END64_LEN as u64 - 12
                && u64_at(locator, 8) == behind;
            if !is_record {
                return Err(misplaced);
            }
            let is_single_volume = u32_at(locator, 4) == 0 && u32_at(locator, 16) == 1;
            if !is_single_volume || u64_at(record, 16) != 0 || u64_at(record, 24) != u64_at(record, 32) {
                return Err(ZipError::Damaged(SEVERAL_VOLUMES));
            }
            (entries, length, start) = (u64_at(record, 32), u64_at(record, 40), u64_at(record, 48));
            let agree = |short: u32, marker: u32, long: u64| short == marker || u64::from(short) == long;
            if !(agree(all.into(), ZIP64_MARKER16.into(), entries)
                && agree(short_length, ZIP64_MARKER32, length)
                && agree(short_start, ZIP64_MARKER32, start))
            {
                return Err(ZipError::Damaged("its two end records contradict each other"));
            }
        }
        if start.checked_add(length) != Some(behind) {
            return Err(ZipError::Damaged("its central directory is not where its end record says"));
        }
        Ok(Self { directory: start..behind, entries, comment_bytes: u16_at(end, 20), lacks_zip64 })
    }
}

/// The header of an entry in the central directory.
#[derive(Debug, Clone)]
pub struct CentralHeader {
    pub name: Vec<u8>,
    pub flags: u16,
    pub method: u16,
    /// Modification time and date in DOS format.
    pub dos_time: u32,
    crc: u32,
    /// Bytes of the content as stored in the zip.
    pub compressed_size: u64,
    /// Bytes of uncompressed content.
    pub size: u64,
    /// Position of the local header in the zip.
    pub offset: u64,
    /// Host system that the entry was made on.
    pub system: u8,
    /// File type and permissions on Unix.
    pub mode: u32,
    pub modified: Option<UnixTime>,
    /// Whether the entry is a symbolic link that stands for a hard link.
    pub hard_link: bool,
    /// Whether the entry has a comment or lies in another volume.
    pub is_unusual: bool,
    /// Whether the last extra field is cut short and therefore ignored.
    pub has_cut_extra_field: bool,
    /// Length of the header in the central directory, in bytes.
    pub length: u64,
}

impl CentralHeader {
    /// Reads the next header. `None` at the end of the directory.
    pub fn read(directory: &mut impl BufRead) -> Result<Option<Self>, ZipError> {
        if directory.fill_buf()?.is_empty() {
            return Ok(None);
        }
        let damaged = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => ZipError::Damaged("its central directory is damaged"),
            _ => ZipError::Io(error),
        };
        let mut head = [0; CENTRAL_LEN];
        directory.read_exact(&mut head).map_err(damaged)?;
        if u32_at(&head, 0) != CENTRAL_SIGNATURE {
            return Err(damaged(io::ErrorKind::UnexpectedEof.into()));
        }
        let [name, extra, comment, volume] = [28, 30, 32, 34].map(|at| u16_at(&head, at));
        let lengths = [name, extra, comment].map(usize::from);
        let mut rest = vec![0; lengths.iter().sum()];
        directory.read_exact(&mut rest).map_err(damaged)?;
        let length = (CENTRAL_LEN + rest.len()) as u64;
        let extra = rest[lengths[0]..lengths[0] + lengths[1]].to_vec();
        rest.truncate(lengths[0]);
        let mut header = Self {
            name: rest,
            flags: u16_at(&head, 8),
            method: u16_at(&head, 10),
            dos_time: u32_at(&head, 12),
            crc: u32_at(&head, 16),
            compressed_size: u32_at(&head, 20).into(),
            size: u32_at(&head, 24).into(),
            offset: u32_at(&head, 42).into(),
            system: head[5],
            mode: u32_at(&head, 38) >> 16,
            modified: None,
            hard_link: false,
            is_unusual: comment != 0 || volume != 0,
            has_cut_extra_field: false,
            length,
        };
        header.apply_extra_fields(&extra)?;
        Ok(Some(header))
    }

    /// Applies the extra fields, which hold 64-bit sizes and finer times.
    fn apply_extra_fields(&mut self, extra: &[u8]) -> Result<(), ZipError> {
        widen(extra, [&mut self.size, &mut self.compressed_size, &mut self.offset])?;
        let mut rest = extra.len();
        for (id, value) in extra_fields(extra) {
            rest -= FIELD_HEAD_LEN + value.len();
            match id {
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
        // Fewer bytes are padding, with which some tools align content.
        self.has_cut_extra_field = rest >= FIELD_HEAD_LEN;
        Ok(())
    }
}

/// Values of a local header that the caller checks or needs.
#[derive(Debug, PartialEq, Eq)]
pub struct LocalHeader {
    /// Length of the header, in bytes.
    pub length: u64,
    /// Modification time and date in DOS format.
    pub dos_time: u32,
}

/// Splits the extra fields of a header into ids and values. Ends before a field that is cut short.
fn extra_fields(mut extra: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (head, rest) = extra.split_first_chunk::<FIELD_HEAD_LEN>()?;
        let (value, after) = rest.split_at_checked(u16_at(head, 2).into())?;
        extra = after;
        Some((u16_at(head, 0), value))
    })
}

/// Replaces each value that equals the zip64 marker with the next value of the zip64 field.
fn widen<const N: usize>(extra: &[u8], values: [&mut u64; N]) -> Result<(), ZipError> {
    let field = extra_fields(extra).find(|(id, _)| *id == FIELD_ZIP64).map_or(&[][..], |(_, value)| value);
    let mut wide = field.as_chunks::<8>().0.iter();
    for value in values {
        if *value == u64::from(ZIP64_MARKER32) {
            let next = wide.next().ok_or(ZipError::Damaged("its extra fields are cut short"))?;
            *value = u64::from_le_bytes(*next);
        }
    }
    Ok(())
}

/// Reads entries. Owns a decompressor and its buffer, which are reused.
#[derive(Debug)]
pub struct EntryReader {
    inflate: Decompress,
    output: Vec<u8>,
}

impl Default for EntryReader {
    fn default() -> Self {
        Self { inflate: Decompress::new(false), output: vec![0; PIECE_BYTES] }
    }
}

impl EntryReader {
    /// Reads the local header at the position of `zip`, and checks it against the central header.
    /// The content follows it.
    pub fn read_local_header(
        &self,
        zip: &mut impl BufRead,
        central: &CentralHeader,
    ) -> Result<LocalHeader, ZipError> {
        // A header that continues behind the zip's entries has the wrong lengths.
        let contradicts = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => ZipError::Damaged(CONTRADICTION),
            _ => ZipError::Io(error),
        };
        let mut head = [0; LOCAL_LEN];
        zip.read_exact(&mut head).map_err(contradicts)?;
        let (name, extra) = (usize::from(u16_at(&head, 26)), usize::from(u16_at(&head, 28)));
        if u32_at(&head, 0) != LOCAL_SIGNATURE || name != central.name.len() {
            return Err(ZipError::Damaged(CONTRADICTION));
        }
        let mut rest = vec![0; name + extra];
        zip.read_exact(&mut rest).map_err(contradicts)?;
        let (mut size, mut compressed_size) = (u32_at(&head, 22).into(), u32_at(&head, 18).into());
        // With a data descriptor, the local header may omit sizes and checksum.
        let streamed = central.flags & FLAG_STREAMED != 0;
        if widen(&rest[name..], [&mut size, &mut compressed_size]).is_err() && streamed {
            // Only a marker without its value says nothing.
            for omitted in [&mut size, &mut compressed_size] {
                if *omitted == u64::from(ZIP64_MARKER32) {
                    *omitted = 0;
                }
            }
        }
        let same = |here: u64, there: u64| here == there || (streamed && here == 0);
        let agrees = u16_at(&head, 6) == central.flags
            && u16_at(&head, 8) == central.method
            && same(u32_at(&head, 14).into(), central.crc.into())
            && same(size, central.size)
            && same(compressed_size, central.compressed_size)
            && rest[..name] == central.name[..];
        if !agrees {
            return Err(ZipError::Damaged(CONTRADICTION));
        }
        Ok(LocalHeader { length: (LOCAL_LEN + name + extra) as u64, dos_time: u32_at(&head, 10) })
    }

    /// Reads the content at the position of `zip` and passes it to `take`. Checks its size and its
    /// checksum. Decoding stops as soon as the content exceeds its declared size.
    pub fn read_content<E>(
        &mut self,
        zip: &mut impl BufRead,
        central: &CentralHeader,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), ContentReadError<E>> {
        let (mut crc, mut size) = (crc32fast::Hasher::new(), 0);
        let mut give = |bytes: &[u8]| {
            size += bytes.len() as u64;
            if size > central.size {
                return Err(ZipError::Damaged("its content is longer than its header declares").into());
            }
            crc.update(bytes);
            take(bytes).map_err(ContentReadError::Receiver)
        };
        match central.method {
            STORED => copy(zip, central.compressed_size, &mut give)?,
            DEFLATED => self.inflate(zip, central.compressed_size, &mut give)?,
            _ => return Err(ZipError::Damaged("its compression method is not supported").into()),
        }
        if size != central.size {
            return Err(ZipError::Damaged("its content is shorter than its header declares").into());
        }
        if crc.finalize() != central.crc {
            return Err(ZipError::Damaged("its checksum is wrong").into());
        }
        Ok(())
    }

    fn inflate<E>(
        &mut self,
        zip: &mut impl BufRead,
        mut missing: u64,
        give: &mut impl FnMut(&[u8]) -> Result<(), ContentReadError<E>>,
    ) -> Result<(), ContentReadError<E>> {
        self.inflate.reset(false);
        loop {
            let input = next_piece(zip, missing)?;
            let (taken, given) = (self.inflate.total_in(), self.inflate.total_out());
            let status = self
                .inflate
                .decompress(input, &mut self.output, FlushDecompress::None)
                .map_err(|_| ZipError::Damaged(DAMAGED_CONTENT))?;
            let taken = self.inflate.total_in() - taken;
            let given = (self.inflate.total_out() - given) as usize;
            zip.consume(taken as usize);
            missing -= taken;
            give(&self.output[..given])?;
            match status {
                // An entry must not hold bytes after the end of its deflate stream.
                Status::StreamEnd if missing == 0 => return Ok(()),
                Status::Ok | Status::BufError if taken != 0 || given != 0 => {}
                _ => return Err(ZipError::Damaged(DAMAGED_CONTENT).into()),
            }
        }
    }

    /// Checks that the content is followed by nothing, or by a data descriptor that agrees with the
    /// central header. `trailing_bytes` is the number of bytes up to the next entry.
    pub fn check_descriptor(
        &self,
        zip: &mut impl BufRead,
        central: &CentralHeader,
        trailing_bytes: u64,
    ) -> Result<(), ZipError> {
        let lengths = if central.flags & FLAG_STREAMED != 0 { &[12_u64, 16, 20, 24][..] } else { &[0] };
        if !lengths.contains(&trailing_bytes) {
            return Err(ZipError::Damaged("unexpected bytes follow its data"));
        }
        let mut found = vec![0; trailing_bytes as usize];
        zip.read_exact(&mut found)?;
        let mut expected = Vec::with_capacity(found.len());
        if trailing_bytes.is_multiple_of(8) && trailing_bytes > 0 {
            expected.extend(DESCRIPTOR_SIGNATURE.to_le_bytes());
        }
        if trailing_bytes > 0 {
            expected.extend(central.crc.to_le_bytes());
            for size in [central.compressed_size, central.size] {
                expected.extend(&size.to_le_bytes()[..if trailing_bytes >= 20 { 8 } else { 4 }]);
            }
        }
        if found != expected {
            return Err(ZipError::Damaged("its data descriptor contradicts the zip's central directory"));
        }
        Ok(())
    }
}

/// Passes `missing` bytes to `give` as they are.
fn copy<E>(
    zip: &mut impl BufRead,
    mut missing: u64,
    give: &mut impl FnMut(&[u8]) -> Result<(), ContentReadError<E>>,
) -> Result<(), ContentReadError<E>> {
    while missing > 0 {
        let piece = next_piece(zip, missing)?;
        let length = piece.len();
        if length == 0 {
            return Err(ZipError::Damaged(DAMAGED_CONTENT).into());
        }
        give(piece)?;
        zip.consume(length);
        missing -= length as u64;
    }
    Ok(())
}

/// Returns at most `missing` bytes at the position of `zip`, without consuming them. Empty at the
/// end.
fn next_piece(zip: &mut impl BufRead, missing: u64) -> io::Result<&[u8]> {
    if missing == 0 {
        return Ok(&[]);
    }
    let piece = zip.fill_buf()?;
    Ok(&piece[..piece.len().min(usize::try_from(missing).unwrap_or(usize::MAX))])
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{ZipEntryKind, ZipMember, end_records};

    fn end(entries: u16, bytes: u32, offset: u32) -> Vec<u8> {
        let mut end = END_SIGNATURE.to_le_bytes().to_vec();
        end.extend([0; 4]);
        end.extend([entries.to_le_bytes(), entries.to_le_bytes()].concat());
        end.extend([bytes.to_le_bytes(), offset.to_le_bytes()].concat());
        end.extend([0; 2]);
        end
    }

    fn found(directory: Range<u64>, entries: u64) -> Option<EndOfDirectory> {
        Some(EndOfDirectory { directory, entries, comment_bytes: 0, lacks_zip64: false })
    }

    #[test]
    fn directory_must_end_at_its_end_record() {
        let read = |end: &[u8], size| EndOfDirectory::parse(end, size).ok();
        assert_eq!(read(&end(2, 50, 100), 172), found(100..150, 2));
        assert_eq!(read(&end(2, 50, 100), 173), None, "a byte that belongs to no record");
        assert_eq!(read(&end(2, 50, 100), 171), None);
    }

    #[test]
    fn marker_without_zip64_is_read_and_reported() {
        let read = EndOfDirectory::parse(&end(u16::MAX, 50, 100), 172).ok();
        assert_eq!(read, found(100..150, 65_535).map(|end| EndOfDirectory { lacks_zip64: true, ..end }));
    }

    #[test]
    fn zip64_end_record_is_read() {
        let (entries, bytes, offset) = (70_000_u64, 5_000_000_u64, 6_000_000_000_u64);
        let mut tail = END64_SIGNATURE.to_le_bytes().to_vec();
        tail.extend(44_u64.to_le_bytes());
        tail.extend([45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        for number in [entries, entries, bytes, offset] {
            tail.extend(number.to_le_bytes());
        }
        tail.extend(LOCATOR64_SIGNATURE.to_le_bytes());
        tail.extend([0; 4]);
        tail.extend((offset + bytes).to_le_bytes());
        tail.extend(1_u32.to_le_bytes());
        tail.extend(end(u16::MAX, bytes as u32, u32::MAX));
        let size = offset + bytes + MIN_TAIL_BYTES;
        let read = |tail: &[u8], size| EndOfDirectory::parse(tail, size).ok();
        assert_eq!(read(&tail, size), found(offset..offset + bytes, entries));
        assert_eq!(read(&tail, size + 1), None);
        tail[24] ^= 1;
        assert_eq!(read(&tail, size), None, "two counts of the entries");
    }

    #[test]
    fn locator_without_room_for_its_record_is_rejected() {
        let mut tail = LOCATOR64_SIGNATURE.to_le_bytes().to_vec();
        tail.extend([0; LOCATOR64_LEN - 4]);
        tail.extend(end(u16::MAX, 0, 0));
        assert!(EndOfDirectory::parse(&tail, tail.len() as u64).is_err());
    }

    #[test]
    fn written_end_records_are_read() {
        for (entries, start, end) in
            [(0, 0, 0), (3, 9, 99), (65_535, 1, 1 << 33), (1, 1 << 33, (1 << 33) + 9)]
        {
            let tail = end_records(entries, start, end);
            let size = end + tail.len() as u64;
            assert_eq!(EndOfDirectory::parse(&tail, size).ok(), found(start..end, entries));
        }
    }

    #[test]
    fn local_header_of_other_size_is_rejected() {
        let member = |content: &[u8]| {
            ZipMember::new(b"a", ZipEntryKind::File, 0o644, (9, 9)).with_content(content, None)
        };
        let central = member(b"content").central_header(0);
        let central = CentralHeader::read(&mut &central[..]).unwrap().unwrap();
        let check = |local: &[u8]| EntryReader::default().read_local_header(&mut &local[..], &central);
        let mut local = member(b"content").local_header();
        assert_eq!(check(&local).unwrap().length, local.len() as u64);
        for at in [18, 22] {
            local[at] ^= 1;
            assert!(matches!(check(&local), Err(ZipError::Damaged(CONTRADICTION))), "byte {at}");
            local[at] ^= 1;
        }
    }

    #[test]
    fn marker_does_not_excuse_other_wrong_local_size() {
        let mut member = ZipMember::new(b"a", ZipEntryKind::File, 0o644, (9, 9)).streamed(7);
        let mut local = member.local_header();
        member.add_block(&crc32fast::Hasher::new(), 7, 9);
        let central = member.central_header(0);
        let central = CentralHeader::read(&mut &central[..]).unwrap().unwrap();
        let mut check = |compressed_size: u32, size: u32| {
            local[18..22].copy_from_slice(&compressed_size.to_le_bytes());
            local[22..26].copy_from_slice(&size.to_le_bytes());
            EntryReader::default().read_local_header(&mut &local[..], &central).is_ok()
        };
        assert!(check(ZIP64_MARKER32, 7) && check(9, ZIP64_MARKER32) && check(ZIP64_MARKER32, 0));
        assert!(!check(ZIP64_MARKER32, 8) && !check(8, ZIP64_MARKER32));
    }

    proptest! {
        #[test]
        fn parsing_any_bytes_does_not_panic(tail in prop::collection::vec(any::<u8>(), 0..120), size: u64) {
            let _any = EndOfDirectory::parse(&tail, size);
            let _any = CentralHeader::read(&mut &tail[..]);
            let mut wide = [u64::from(ZIP64_MARKER32); 3];
            let _any = widen(&tail, wide.each_mut());
        }

        /// Both headers of any entry are read back, and its content.
        #[test]
        fn written_entry_is_read(
            path in "[a-zä/]{1,40}",
            content in prop::collection::vec(any::<u8>(), 0..3_000),
            modified in (any::<i64>(), 0..1_000_000_000_u32),
            offset: u64,
            expected_size: u64,
            streamed: bool,
        ) {
            let new = ZipMember::new(path.as_bytes(), ZipEntryKind::File, 0o640, modified);
            let (member, mut stream) = if streamed {
                let deflated = crate::Deflater::default().compress_block(&content).unwrap();
                let mut member = new.streamed(expected_size);
                let mut crc = crc32fast::Hasher::new();
                crc.update(&content);
                let head = member.local_header();
                let deflated = [&deflated[..], &crate::FINAL_BLOCK].concat();
                member.add_block(&crc, content.len() as u64, deflated.len() as u64);
                let stream = [&head[..], &deflated, &member.descriptor()].concat();
                (member, stream)
            } else {
                let member = new.with_content(&content, None);
                let stream = [&member.local_header()[..], &content].concat();
                (member, stream)
            };
            let size = stream.len() as u64;
            stream.extend(b"more");
            let encoded = member.central_header(offset);
            let central = CentralHeader::read(&mut &encoded[..]).unwrap().unwrap();
            prop_assert_eq!((&central.name[..], central.offset), (path.as_bytes(), offset));
            prop_assert_eq!((central.length, central.modified), (encoded.len() as u64, Some(modified)));
            let (mut zip, mut reader, mut read) = (&stream[..], EntryReader::default(), Vec::new());
            let header = reader.read_local_header(&mut zip, &central).unwrap();
            let take = |bytes: &[u8]| { read.extend_from_slice(bytes); Ok::<_, ()>(()) };
            reader.read_content(&mut zip, &central, take).unwrap();
            let trailing_bytes = size - header.length - central.compressed_size;
            reader.check_descriptor(&mut zip, &central, trailing_bytes).unwrap();
            prop_assert_eq!(header.dos_time, central.dos_time);
            prop_assert_eq!((read, zip), (content, &b"more"[..]));
        }
    }
}
