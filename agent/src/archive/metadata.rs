//! Metadata of a file, to archive it and to detect changes while it is read.

use std::{ffi::OsStr, os::fd::AsFd, time::SystemTime};

use rustix::{
    fs::{AtFlags, FileType, Stat, StatxFlags, statat, statx},
    io::Errno,
};

use crate::files::{FileKind, unix_system_time};

/// Seconds and nanoseconds since 1970.
pub(super) type UnixTime = (i64, u32);

/// Device and inode of a file.
pub(super) type FileIdentity = (u64, u64);

/// Metadata of an entry at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EntryMetadata {
    pub(super) kind: FileKind,
    pub(super) mode: u32,
    pub(super) size: u64,
    pub(super) modified: UnixTime,
    /// Time of the last change of content or attributes (ctime), which no program can set.
    pub(super) changed: UnixTime,
    /// Whether the entry is a FIFO. Its kind is [`FileKind::Other`].
    pub(super) is_fifo: bool,
    /// Number of names of the file.
    pub(super) links: u64,
    device: u64,
    inode: u64,
    /// Mount id; `None` where statx does not report it (before Linux 5.8, gVisor).
    mount: Option<u64>,
}

impl EntryMetadata {
    /// Reads the metadata of `name` in `dir`. Does not follow a symbolic link.
    pub(super) fn at(dir: impl AsFd, name: &OsStr) -> Result<Self, Errno> {
        Self::read(dir, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    pub(super) fn of(fd: impl AsFd) -> Result<Self, Errno> {
        Self::read(fd, OsStr::new(""), AtFlags::EMPTY_PATH)
    }

    fn read(dir: impl AsFd, name: &OsStr, flags: AtFlags) -> Result<Self, Errno> {
        let mask = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
        let stat = match statx(dir.as_fd(), name, flags, mask) {
            Err(Errno::NOSYS | Errno::PERM) => {
                return statat(dir, name, flags).map(|stat| Self::plain(&stat));
            }
            stat => stat?,
        };
        let has_mount_id = stat.stx_mask & StatxFlags::MNT_ID.bits() != 0;
        Ok(Self {
            kind: FileKind::of_mode(stat.stx_mode.into()),
            mode: u32::from(stat.stx_mode) & 0o7777,
            size: stat.stx_size,
            modified: (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
            changed: (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec),
            is_fifo: FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Fifo,
            links: stat.stx_nlink.into(),
            device: u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor),
            inode: stat.stx_ino,
            mount: has_mount_id.then_some(stat.stx_mnt_id),
        })
    }

    fn plain(stat: &Stat) -> Self {
        let nanos = |nanos: u64| u32::try_from(nanos).unwrap_or(0);
        Self {
            kind: FileKind::of_mode(stat.st_mode),
            mode: stat.st_mode & 0o7777,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified: (stat.st_mtime, nanos(stat.st_mtime_nsec)),
            changed: (stat.st_ctime, nanos(stat.st_ctime_nsec)),
            is_fifo: FileType::from_raw_mode(stat.st_mode) == FileType::Fifo,
            links: stat.st_nlink,
            device: stat.st_dev,
            inode: stat.st_ino,
            mount: None,
        }
    }

    /// Returns whether `entry`, which is in this directory, is a mount point or in another file
    /// system.
    pub(super) fn mounted(&self, entry: &Self) -> bool {
        match (self.mount, entry.mount) {
            (Some(here), Some(there)) => here != there,
            // Layered file systems report several devices for files, but one for directories.
            _ => entry.kind == FileKind::Directory && self.device != entry.device,
        }
    }

    /// Returns what all names of one file have in common.
    pub(super) fn identity(&self) -> FileIdentity {
        (self.device, self.inode)
    }

    pub(super) fn modified_at(&self) -> SystemTime {
        unix_system_time(self.modified.0, self.modified.1.into())
    }
}
