//! Encodes the headers and end records of a zip. Writes no content.

use crate::layout::{
    CENTRAL_SIGNATURE, DEFLATED, DESCRIPTOR_SIGNATURE, END_SIGNATURE, END64_LEN, END64_SIGNATURE,
    FIELD_EXACT_TIME, FIELD_HARD_LINK, FIELD_TIMES, FIELD_ZIP64, FLAG_STREAMED, FLAG_UTF8, LOCAL_SIGNATURE,
    LOCATOR64_SIGNATURE, STORED, UNIX, UnixTime, ZIP64_MARKER16, ZIP64_MARKER32, ZipEntryKind,
};

/// Size from which an entry gets 64-bit sizes before its content. Deflate adds at most 5 bytes per
/// 64 KiB, so a smaller file stays below 4 GiB.
const ZIP64_FROM: u64 = 0xF000_0000;

/// An entry with the values that its local and its central header need.
#[derive(Debug, Clone)]
pub struct ZipMember {
    /// Ends with a slash for a directory.
    name: Vec<u8>,
    kind: ZipEntryKind,
    permissions: u32,
    modified: UnixTime,
    method: u16,
    crc: u32,
    /// Bytes as stored in the zip.
    compressed_size: u64,
    /// Bytes of uncompressed content.
    size: u64,
    /// Whether sizes and checksum follow the content.
    streamed: bool,
    /// Whether the local header and the data descriptor have 64-bit sizes.
    wide: bool,
    /// Whether the member is a symbolic link that stands for a hard link.
    hard_link: bool,
}

impl ZipMember {
    /// Creates a member without content. The name of a directory gets a trailing slash.
    pub fn new(path: &[u8], kind: ZipEntryKind, permissions: u32, modified: UnixTime) -> Self {
        let end = if kind == ZipEntryKind::Directory { &b"/"[..] } else { b"" };
        Self {
            name: [path, end].concat(),
            kind,
            permissions,
            modified,
            method: STORED,
            crc: 0,
            compressed_size: 0,
            size: 0,
            streamed: false,
            wide: false,
            hard_link: false,
        }
    }

    /// Sets the content, which is stored unless its deflated form is given.
    #[must_use]
    pub fn with_content(self, content: &[u8], deflated: Option<&[u8]>) -> Self {
        let (size, compressed_size) = (content.len() as u64, deflated.unwrap_or(content).len() as u64);
        Self {
            method: if deflated.is_some() { DEFLATED } else { STORED },
            crc: crc32fast::hash(content),
            compressed_size,
            size,
            wide: size.max(compressed_size) >= ZIP64_FROM,
            ..self
        }
    }

    /// Declares deflated content. Its checksum and sizes follow it in a data descriptor.
    #[must_use]
    pub fn streamed(self, expected_size: u64) -> Self {
        Self { method: DEFLATED, streamed: true, wide: expected_size >= ZIP64_FROM, ..self }
    }

    /// Marks a symbolic link that stands for a further name of a file.
    #[must_use]
    pub fn hard_link(self, hard_link: bool) -> Self {
        Self { hard_link, ..self }
    }

    /// Adds a block of streamed content: `size` bytes with the checksum `crc`, deflated to
    /// `compressed_size` bytes.
    pub fn add_block(&mut self, crc: &crc32fast::Hasher, size: u64, compressed_size: u64) {
        let mut whole = crc32fast::Hasher::new_with_initial_len(self.crc, self.size);
        whole.combine(crc);
        self.crc = whole.finalize();
        self.size += size;
        self.compressed_size += compressed_size;
    }

    /// Returns the bytes of uncompressed content.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Encodes the header before the content.
    pub fn local_header(&self) -> Vec<u8> {
        let (crc, size, compressed_size) =
            if self.streamed { (0, 0, 0) } else { (self.crc, self.size, self.compressed_size) };
        let mut extra = Vec::new();
        if self.wide {
            extra_field(&mut extra, FIELD_ZIP64, &[size, compressed_size].map(u64::to_le_bytes).concat());
        }
        self.put_times(&mut extra);
        // Some programs that know zip64 read only this header. They expect the marker here even if
        // the sizes follow the content.
        let narrow = |size: u64| if self.wide { ZIP64_MARKER32 } else { size as u32 };
        let mut out = Vec::with_capacity(64 + self.name.len() + extra.len());
        put32(&mut out, LOCAL_SIGNATURE);
        self.put_common(&mut out, self.wide, crc, narrow(compressed_size), narrow(size), &extra);
        out.extend_from_slice(&self.name);
        out.extend_from_slice(&extra);
        out
    }

    /// Encodes the data descriptor after streamed content.
    pub fn descriptor(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(24);
        put32(&mut out, DESCRIPTOR_SIGNATURE);
        put32(&mut out, self.crc);
        for size in [self.compressed_size, self.size] {
            out.extend_from_slice(&size.to_le_bytes()[..if self.wide { 8 } else { 4 }]);
        }
        out
    }

    /// Encodes the entry of the central directory. `offset` is that of the local header.
    pub fn central_header(&self, offset: u64) -> Vec<u8> {
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
        self.put_times(&mut extra);
        let (seconds, nanos) = self.modified;
        if nanos != 0 || i32::try_from(seconds).is_err() {
            let exact = [&seconds.to_le_bytes()[..], &nanos.to_le_bytes()].concat();
            extra_field(&mut extra, FIELD_EXACT_TIME, &exact);
        }
        if self.hard_link {
            extra_field(&mut extra, FIELD_HARD_LINK, &[]);
        }
        let mut out = Vec::with_capacity(64 + self.name.len() + extra.len());
        put32(&mut out, CENTRAL_SIGNATURE);
        out.extend_from_slice(&[45, UNIX]);
        self.put_common(&mut out, !wide.is_empty(), self.crc, compressed_size, size, &extra);
        // No comment, on disk 0, no internal attributes.
        out.extend_from_slice(&[0; 6]);
        let dos = if self.kind == ZipEntryKind::Directory { 0x10 } else { 0 };
        put32(&mut out, (self.kind.type_bits() | self.permissions) << 16 | dos);
        put32(&mut out, offset);
        out.extend_from_slice(&self.name);
        out.extend_from_slice(&extra);
        out
    }

    /// Writes the fields that both headers share, from the version needed to the lengths.
    fn put_common(
        &self,
        out: &mut Vec<u8>,
        wide: bool,
        crc: u32,
        compressed_size: u32,
        size: u32,
        extra: &[u8],
    ) {
        let ascii = self.name.is_ascii();
        let utf8 = if !ascii && std::str::from_utf8(&self.name).is_ok() { FLAG_UTF8 } else { 0 };
        let (time, date) = dos_time(self.modified.0);
        put16(out, if wide { 45 } else { 20 });
        put16(out, utf8 | if self.streamed { FLAG_STREAMED } else { 0 });
        put16(out, self.method);
        put16(out, time);
        put16(out, date);
        put32(out, crc);
        put32(out, compressed_size);
        put32(out, size);
        put16(out, self.name.len() as u16);
        put16(out, extra.len() as u16);
    }

    /// Writes Info-ZIP's time field, with the modification time only.
    fn put_times(&self, extra: &mut Vec<u8>) {
        if let Ok(seconds) = i32::try_from(self.modified.0) {
            extra_field(extra, FIELD_TIMES, &[&[1][..], &seconds.to_le_bytes()].concat());
        }
    }
}

/// Encodes the records at the end of a zip, whose directory spans `start..end`.
pub fn end_records(entries: u64, start: u64, end: u64) -> Vec<u8> {
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
    fn dos_time_matches_calendar_and_clamps() {
        // 2024-02-29 12:34:56 UTC.
        assert_eq!(dos_time(1_709_210_096), (12 << 11 | 34 << 5 | 28, 44 << 9 | 2 << 5 | 29));
        assert_eq!(dos_time(i64::MIN), (0, 1 << 5 | 1));
        assert_eq!(dos_time(i64::MAX), (23 << 11 | 59 << 5 | 29, 127 << 9 | 12 << 5 | 31));
    }
}
