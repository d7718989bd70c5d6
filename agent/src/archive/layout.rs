//! The byte layout of a zip, as in PKWARE's APPNOTE, with Info-ZIP's field for times. Pure.
//!
//! Times that are finer than a second, or outside 1901 to 2038, go into an extra field that only
//! Podling reads (0x6470: seconds as i64, nanoseconds as u32). Another one (0x6471, empty) marks a
//! symbolic link that stands for a hard link.

use super::metadata::UnixTime;

pub(super) const LOCAL_SIGNATURE: u32 = 0x0403_4b50;
pub(super) const CENTRAL_SIGNATURE: u32 = 0x0201_4b50;
pub(super) const END_SIGNATURE: u32 = 0x0605_4b50;
pub(super) const END64_SIGNATURE: u32 = 0x0606_4b50;
pub(super) const LOCATOR64_SIGNATURE: u32 = 0x0706_4b50;
const DESCRIPTOR_SIGNATURE: u32 = 0x0807_4b50;

/// Lengths of the fixed parts of the headers, in bytes.
pub(super) const LOCAL_LEN: usize = 30;
pub(super) const CENTRAL_LEN: usize = 46;
pub(super) const END_LEN: usize = 22;
pub(super) const END64_LEN: usize = 56;
pub(super) const LOCATOR64_LEN: usize = 20;

/// Marks a value that is stored in the zip64 field instead.
pub(super) const ZIP64_MARKER16: u16 = u16::MAX;
pub(super) const ZIP64_MARKER32: u32 = u32::MAX;

/// General purpose flag of an entry whose sizes and checksum follow the content.
pub(super) const STREAMED: u16 = 1 << 3;
const UTF8: u16 = 1 << 11;

pub(super) const STORED: u16 = 0;
pub(super) const DEFLATED: u16 = 8;

pub(super) const FIELD_ZIP64: u16 = 0x0001;
pub(super) const FIELD_TIMES: u16 = 0x5455;
pub(super) const FIELD_EXACT_TIME: u16 = 0x6470;
/// Marks a symbolic link that Podling restores as a hard link. Empty.
pub(super) const FIELD_HARD_LINK: u16 = 0x6471;

/// File types in the upper half of a Unix entry's attributes.
pub(super) const IS_FILE: u32 = 0o100_000;
pub(super) const IS_DIRECTORY: u32 = 0o040_000;
pub(super) const IS_SYMLINK: u32 = 0o120_000;
pub(super) const IS_FIFO: u32 = 0o010_000;
pub(super) const KIND_BITS: u32 = 0o170_000;

/// Number of Unix as the host system of an entry.
pub(super) const UNIX: u8 = 3;

/// Expected size from which a streamed file gets 64-bit sizes. Deflate adds at most 5 bytes per 64
/// KiB, so a smaller file stays below 4 GiB.
const ZIP64_FROM: u64 = 0xF000_0000;

/// An entry with the values that its local and its central header need.
#[derive(Debug, Clone)]
pub(super) struct ZipMember {
    /// Ends with a slash for a directory.
    pub(super) name: Vec<u8>,
    /// File type and permission bits.
    pub(super) mode: u32,
    pub(super) modified: UnixTime,
    pub(super) method: u16,
    pub(super) crc: u32,
    /// Bytes as stored in the zip.
    pub(super) compressed_size: u64,
    /// Bytes of uncompressed content.
    pub(super) size: u64,
    /// Whether sizes and checksum follow the content.
    pub(super) streamed: bool,
    /// Whether the member is a symbolic link that stands for a hard link.
    pub(super) hard_link: bool,
}

impl ZipMember {
    /// Encodes the header before the content. For a streamed member `size` is the expected size.
    pub(super) fn local_header(&self) -> Vec<u8> {
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
    pub(super) fn descriptor(&self, expected: u64) -> Vec<u8> {
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
    pub(super) fn central_header(&self, offset: u64) -> Vec<u8> {
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

/// Encodes the records at the end of a zip, whose directory spans `start..end`.
pub(super) fn end_records(entries: u64, start: u64, end: u64) -> Vec<u8> {
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
