//! File system entries as clients see them.

use std::{
    ffi::OsStr,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::{
    fs::{FileType, Stat, Timespec, fstat, readlinkat},
    io::Errno,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    File,
    Directory,
    Symlink,
    /// A socket, a pipe or a device.
    Other,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// Last component of the path in raw bytes; empty for the root.
    pub name: Vec<u8>,
    pub kind: FileKind,
    /// Size of the content in bytes.
    pub size: u64,
    pub mode: u32,
    pub modified: SystemTime,
    /// Target of a symbolic link as written; empty for other kinds.
    pub link_target: Vec<u8>,
    pub device: u64,
    pub ino: u64,
}

impl FileEntry {
    pub(super) fn new(name: &OsStr, stat: &Stat, link_target: Vec<u8>) -> Self {
        Self {
            name: name.as_bytes().to_vec(),
            kind: match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => FileKind::File,
                FileType::Directory => FileKind::Directory,
                FileType::Symlink => FileKind::Symlink,
                _ => FileKind::Other,
            },
            size: u64::try_from(stat.st_size).unwrap_or_default(),
            mode: stat.st_mode & 0o7777,
            modified: modified_time(stat),
            link_target,
            device: stat.st_dev,
            ino: stat.st_ino,
        }
    }

    /// Reads the metadata of an open descriptor, which may be a symbolic link.
    pub(super) fn from_fd(name: &OsStr, fd: &OwnedFd) -> Result<Self, Errno> {
        let stat = fstat(fd)?;
        let link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
        let target = if link { readlinkat(fd, "", Vec::new())?.into_bytes() } else { Vec::new() };
        Ok(Self::new(name, &stat, target))
    }
}

fn modified_time(stat: &Stat) -> SystemTime {
    unix_system_time(stat.st_mtime, stat.st_mtime_nsec)
}

pub(crate) fn unix_system_time(seconds: i64, nanos: u64) -> SystemTime {
    let nanos = Duration::from_nanos(nanos);
    // Negating i64::MIN would overflow in the conversion to the wire format, so the time is clamped
    // to the next second.
    let distance = Duration::from_secs(seconds.max(-i64::MAX).unsigned_abs());
    let whole = if seconds < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) };
    whole.and_then(|at| at.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
}

pub(super) fn timespec(at: SystemTime) -> Timespec {
    match at.duration_since(UNIX_EPOCH) {
        Ok(after) => Timespec {
            tv_sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: after.subsec_nanos().into(),
        },
        Err(before) => {
            let before = before.duration();
            let partial = i64::from(before.subsec_nanos() > 0);
            let nanos = if partial == 1 { 1_000_000_000 - before.subsec_nanos() } else { 0 };
            let seconds = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
            Timespec { tv_sec: -seconds - partial, tv_nsec: nanos.into() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_before_1970_converts_to_timespec() {
        let at = UNIX_EPOCH - Duration::from_millis(1_250);
        assert_eq!(timespec(at), Timespec { tv_sec: -2, tv_nsec: 750_000_000 });
        let at = UNIX_EPOCH + Duration::from_millis(1_250);
        assert_eq!(timespec(at), Timespec { tv_sec: 1, tv_nsec: 250_000_000 });
    }

    #[test]
    fn extreme_times_convert_to_wire() {
        for seconds in [i64::MIN, i64::MIN + 1, -1, 0, i64::MAX] {
            for nanos in [0, 999_999_999] {
                let timestamp = prost_types::Timestamp::from(unix_system_time(seconds, nanos));
                assert_eq!(timestamp.seconds, seconds.max(-i64::MAX), "{seconds} s and {nanos} ns");
            }
        }
    }
}
