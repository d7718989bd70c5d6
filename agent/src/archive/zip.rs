//! The byte layout of a zip, as in PKWARE's APPNOTE, with Info-ZIP's field for times. `writer`
//! writes archives, `reader` reads the structure of a received zip, and `inspect` checks it.
//!
//! Times that are finer than a second, or outside 1901 to 2038, go into an extra field that only
//! Podling reads (0x6470: seconds as i64, nanoseconds as u32). Another one (0x6471, empty) marks a
//! symbolic link that stands for a hard link.

mod inspect;
mod reader;
mod writer;

pub(super) use self::{
    inspect::CheckedEntry,
    reader::{Decoder, ZipReader},
    writer::ZipWriter,
};
use super::{EntryMetadata, UnixTime};
use crate::files::FileKind;

const LOCAL_SIGNATURE: u32 = 0x0403_4b50;
const CENTRAL_SIGNATURE: u32 = 0x0201_4b50;
const END_SIGNATURE: u32 = 0x0605_4b50;
const END64_SIGNATURE: u32 = 0x0606_4b50;
const LOCATOR64_SIGNATURE: u32 = 0x0706_4b50;
const DESCRIPTOR_SIGNATURE: u32 = 0x0807_4b50;

/// Lengths of the fixed parts of the headers, in bytes.
const LOCAL_LEN: usize = 30;
const CENTRAL_LEN: usize = 46;
const END_LEN: usize = 22;
const END64_LEN: usize = 56;
const LOCATOR64_LEN: usize = 20;

/// Marks a value that is stored in the zip64 field instead.
const ZIP64_MARKER16: u16 = u16::MAX;
const ZIP64_MARKER32: u32 = u32::MAX;

/// General purpose flag of an entry whose sizes and checksum follow the content.
const STREAMED: u16 = 1 << 3;
const UTF8: u16 = 1 << 11;

const STORED: u16 = 0;
const DEFLATED: u16 = 8;

const FIELD_ZIP64: u16 = 0x0001;
const FIELD_TIMES: u16 = 0x5455;
const FIELD_EXACT_TIME: u16 = 0x6470;
/// Marks a symbolic link that Podling restores as a hard link. Empty.
const FIELD_HARD_LINK: u16 = 0x6471;

/// File types in the upper half of a Unix entry's attributes.
const IS_FILE: u32 = 0o100_000;
const IS_DIRECTORY: u32 = 0o040_000;
const IS_SYMLINK: u32 = 0o120_000;
const IS_FIFO: u32 = 0o010_000;
const KIND_BITS: u32 = 0o170_000;

/// Number of Unix as the host system of an entry.
const UNIX: u8 = 3;

/// Maximum bytes of a link target, as in the kernel.
const MAX_TARGET: u64 = 4_095;

/// Expected size from which a streamed file gets 64-bit sizes. Deflate adds at most 5 bytes per 64
/// KiB, so a smaller file stays below 4 GiB.
const ZIP64_FROM: u64 = 0xF000_0000;

/// An entry with the values that its local and its central header need.
#[derive(Debug, Clone)]
pub(super) struct ZipMember {
    /// Ends with a slash for a directory.
    name: Vec<u8>,
    /// File type and permission bits.
    mode: u32,
    modified: UnixTime,
    method: u16,
    crc: u32,
    /// Bytes as stored in the zip.
    compressed_size: u64,
    /// Bytes of uncompressed content.
    /// The expected size until streamed content is complete.
    pub(super) size: u64,
    /// Whether sizes and checksum follow the content.
    streamed: bool,
    /// Whether the member is a symbolic link that stands for a hard link.
    hard_link: bool,
}

/// An entry as the central directory describes it.
#[derive(Debug, Clone)]
struct CentralRecord {
    name: Vec<u8>,
    flags: u16,
    method: u16,
    crc: u32,
    compressed_size: u64,
    size: u64,
    /// Offset of the local header.
    header: u64,
    /// Host system that the entry was made on.
    system: u8,
    /// Upper half of the attributes: file type and permissions on Unix.
    mode: u32,
    modified: Option<UnixTime>,
    /// Whether the entry is a symbolic link that stands for a hard link.
    hard_link: bool,
}

impl ZipMember {
    /// Creates the member of a directory or a FIFO. The name of a directory gets a trailing slash.
    pub(super) fn empty(path: &[u8], metadata: &EntryMetadata) -> Self {
        let (kind, end) = match metadata.kind {
            FileKind::Directory => (IS_DIRECTORY, &b"/"[..]),
            _ => (IS_FIFO, &b""[..]),
        };
        Self::new([path, end].concat(), kind, metadata)
    }

    /// Returns the target of a hard link at `path` to the file `first`. `None` if it is too long.
    pub(super) fn hard_link_target(path: &[u8], first: &[u8]) -> Option<Vec<u8>> {
        Some(relative_target(path, first)).filter(|target| target.len() as u64 <= MAX_TARGET)
    }

    /// Creates the member of a symbolic link. With `hard_link`, it stands for a further name of a
    /// file.
    pub(super) fn link(path: &[u8], metadata: &EntryMetadata, target: &[u8], hard_link: bool) -> Self {
        let size = target.len() as u64;
        let member = Self::new(path.to_vec(), IS_SYMLINK, metadata);
        Self { crc: crc32fast::hash(target), compressed_size: size, size, hard_link, ..member }
    }

    /// Creates the member of a file, which is stored unless `deflated` is given.
    pub(super) fn whole_file(
        path: &[u8],
        metadata: &EntryMetadata,
        content: &[u8],
        deflated: Option<&[u8]>,
    ) -> Self {
        Self {
            method: if deflated.is_some() { DEFLATED } else { STORED },
            crc: crc32fast::hash(content),
            compressed_size: deflated.unwrap_or(content).len() as u64,
            size: content.len() as u64,
            ..Self::new(path.to_vec(), IS_FILE, metadata)
        }
    }

    /// Creates the member of a deflated file whose checksum and sizes follow the content.
    pub(super) fn streamed_file(path: &[u8], metadata: &EntryMetadata) -> Self {
        let member = Self::new(path.to_vec(), IS_FILE, metadata);
        Self { method: DEFLATED, size: metadata.size, streamed: true, ..member }
    }

    fn new(name: Vec<u8>, kind: u32, metadata: &EntryMetadata) -> Self {
        Self {
            name,
            mode: kind | metadata.mode,
            modified: metadata.modified,
            method: STORED,
            crc: 0,
            compressed_size: 0,
            size: 0,
            streamed: false,
            hard_link: false,
        }
    }

    /// Encodes the header before the content. For a streamed member `size` is the expected size.
    fn local_header(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(LOCAL_LEN + self.name.len() + 40);
        let wide = self.needs_zip64();
        let (crc, compressed_size, size) = match (self.streamed, wide) {
            (true, _) => (0, 0, 0),
            (false, true) => (self.crc, ZIP64_MARKER32, ZIP64_MARKER32),
            (false, false) => (self.crc, self.compressed_size as u32, self.size as u32),
        };
        let mut extra = Vec::new();
        if wide {
            let sizes = if self.streamed { [0, 0] } else { [self.size, self.compressed_size] };
            extra_field(&mut extra, FIELD_ZIP64, &sizes.map(u64::to_le_bytes).concat());
        }
        self.write_times(&mut extra);
        put32(&mut out, LOCAL_SIGNATURE);
        self.write_common(&mut out, wide);
        put32(&mut out, crc);
        // Some programs that know zip64 read only this header. They expect the marker here even if
        // the sizes follow the content.
        let mark = |plain: u32| if wide { ZIP64_MARKER32 } else { plain };
        put32(&mut out, mark(compressed_size));
        put32(&mut out, mark(size));
        put16(&mut out, self.name.len() as u16);
        put16(&mut out, extra.len() as u16);
        out.extend_from_slice(&self.name);
        out.extend_from_slice(&extra);
        out
    }

    /// Encodes the data descriptor after streamed content. `expected` is the size that the local
    /// header was made with.
    fn descriptor(&self, expected: u64) -> Vec<u8> {
        let mut out = Vec::with_capacity(24);
        put32(&mut out, DESCRIPTOR_SIGNATURE);
        put32(&mut out, self.crc);
        if expected >= ZIP64_FROM {
            put64(&mut out, self.compressed_size);
            put64(&mut out, self.size);
        } else {
            put32(&mut out, self.compressed_size as u32);
            put32(&mut out, self.size as u32);
        }
        out
    }

    /// Encodes the entry of the central directory.
    fn central_header(&self, offset: u64) -> Vec<u8> {
        let mut out = Vec::with_capacity(CENTRAL_LEN + self.name.len() + 64);
        let (mut wide, mut extra) = (Vec::new(), Vec::new());
        let mut narrow = |value: u64| match u32::try_from(value) {
            Ok(value) if value != ZIP64_MARKER32 => value,
            _ => {
                wide.extend_from_slice(&value.to_le_bytes());
                ZIP64_MARKER32
            }
        };
        let (size, compressed_size, offset) =
            (narrow(self.size), narrow(self.compressed_size), narrow(offset));
        if !wide.is_empty() {
            extra_field(&mut extra, FIELD_ZIP64, &wide);
        }
        self.write_times(&mut extra);
        let (seconds, nanos) = self.modified;
        if nanos != 0 || i32::try_from(seconds).is_err() {
            let exact = [&seconds.to_le_bytes()[..], &nanos.to_le_bytes()].concat();
            extra_field(&mut extra, FIELD_EXACT_TIME, &exact);
        }
        if self.hard_link {
            extra_field(&mut extra, FIELD_HARD_LINK, &[]);
        }
        put32(&mut out, CENTRAL_SIGNATURE);
        out.extend_from_slice(&[45, UNIX]);
        self.write_common(&mut out, !wide.is_empty());
        put32(&mut out, self.crc);
        put32(&mut out, compressed_size);
        put32(&mut out, size);
        put16(&mut out, self.name.len() as u16);
        put16(&mut out, extra.len() as u16);
        // No comment, on disk 0, no internal attributes.
        out.extend_from_slice(&[0; 6]);
        let dos = if self.mode & KIND_BITS == IS_DIRECTORY { 0x10 } else { 0 };
        put32(&mut out, self.mode << 16 | dos);
        put32(&mut out, offset);
        out.extend_from_slice(&self.name);
        out.extend_from_slice(&extra);
        out
    }

    fn needs_zip64(&self) -> bool {
        self.size >= ZIP64_FROM || self.compressed_size >= ZIP64_FROM
    }

    /// Writes the fields that both headers share: version needed, flags, method, time.
    fn write_common(&self, out: &mut Vec<u8>, wide: bool) {
        let ascii = self.name.is_ascii();
        let utf8 = if !ascii && std::str::from_utf8(&self.name).is_ok() { UTF8 } else { 0 };
        put16(out, if wide { 45 } else { 20 });
        put16(out, utf8 | if self.streamed { STREAMED } else { 0 });
        put16(out, self.method);
        let (time, date) = dos_time(self.modified.0);
        put16(out, time);
        put16(out, date);
    }

    /// Writes Info-ZIP's time field, with the modification time only.
    fn write_times(&self, extra: &mut Vec<u8>) {
        if let Ok(seconds) = i32::try_from(self.modified.0) {
            extra_field(extra, FIELD_TIMES, &[&[1][..], &seconds.to_le_bytes()].concat());
        }
    }
}

/// Returns the target of a hard link at `from` to the file `to`, which is the path of `to` relative
/// to the directory of `from`.
fn relative_target(from: &[u8], to: &[u8]) -> Vec<u8> {
    let depth = from.iter().filter(|byte| **byte == b'/').count();
    [b"../".repeat(depth), to.to_vec()].concat()
}

/// Resolves the target of a hard link at `path`. `None` if the target is absolute, leaves the
/// archived directory or is not in the form that [`relative_target`] gives.
fn resolve_target(path: &[u8], target: &[u8]) -> Option<Vec<u8>> {
    let depth = path.iter().filter(|byte| **byte == b'/').count();
    let first = target.strip_prefix(&b"../".repeat(depth)[..])?;
    let is_plain = first.split(|byte| *byte == b'/').all(|part| !matches!(part, b"" | b"." | b".."));
    is_plain.then(|| first.to_vec())
}

/// Encodes the records at the end of a zip, whose directory spans `start..end`.
fn end_records(entries: u64, start: u64, end: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let size = end - start;
    if entries >= u64::from(ZIP64_MARKER16)
        || size >= u64::from(ZIP64_MARKER32)
        || start >= u64::from(ZIP64_MARKER32)
    {
        put32(&mut out, END64_SIGNATURE);
        put64(&mut out, END64_LEN as u64 - 12);
        out.extend_from_slice(&[45, UNIX]);
        put16(&mut out, 45);
        out.extend_from_slice(&[0; 8]);
        for value in [entries, entries, size, start] {
            put64(&mut out, value);
        }
        put32(&mut out, LOCATOR64_SIGNATURE);
        put32(&mut out, 0);
        put64(&mut out, end);
        put32(&mut out, 1);
    }
    put32(&mut out, END_SIGNATURE);
    put32(&mut out, 0);
    let count = u16::try_from(entries).unwrap_or(ZIP64_MARKER16);
    put16(&mut out, count);
    put16(&mut out, count);
    put32(&mut out, u32::try_from(size).unwrap_or(ZIP64_MARKER32));
    put32(&mut out, u32::try_from(start).unwrap_or(ZIP64_MARKER32));
    put16(&mut out, 0);
    out
}

fn extra_field(extra: &mut Vec<u8>, id: u16, value: &[u8]) {
    put16(extra, id);
    put16(extra, value.len() as u16);
    extra.extend_from_slice(value);
}

fn put16(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// Converts to DOS time and date in UTC, which does not disclose the local time zone. Times before
/// 1980 and after 2107 are clamped.
fn dos_time(seconds: i64) -> (u16, u16) {
    const FIRST: i64 = 315_532_800;
    const LAST: i64 = 4_354_819_198;
    let seconds = seconds.clamp(FIRST, LAST);
    let (days, of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Howard Hinnant's civil_from_days: a year begins in March, so the leap day is its last day.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let date = (year - 1980) << 9 | month << 5 | day;
    let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
    let time = hour << 11 | minute << 5 | (second / 2);
    (time as u16, date as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_resolves_to_the_first_name() {
        for (from, to) in [(&b"b"[..], &b"a"[..]), (b"d/e/b", b"a"), (b"d/b", b"d/a"), (b"b", b"d/e/a")] {
            assert_eq!(resolve_target(from, &relative_target(from, to)).as_deref(), Some(to));
        }
        for (path, target) in [
            (&b"b"[..], &b"/etc/passwd"[..]),
            (b"b", b"../a"),
            (b"d/b", b"../../a"),
            (b"d/b", b"a"),
            (b"b", b"d/../../a"),
            (b"b", b"./a"),
            (b"b", b""),
            (b"b", b"d//a"),
        ] {
            assert_eq!(resolve_target(path, target), None, "{}", target.escape_ascii());
        }
    }

    #[test]
    fn dos_time_matches_calendar_and_clamps() {
        // 2024-02-29 12:34:56 UTC.
        assert_eq!(dos_time(1_709_210_096), (12 << 11 | 34 << 5 | 28, 44 << 9 | 2 << 5 | 29));
        assert_eq!(dos_time(i64::MIN), (0, 1 << 5 | 1));
        assert_eq!(dos_time(i64::MAX), (23 << 11 | 59 << 5 | 29, 127 << 9 | 12 << 5 | 31));
    }
}
