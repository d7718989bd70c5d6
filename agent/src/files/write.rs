//! Writes a file as a whole. The content goes into a temporary file beside it and is hashed
//! meanwhile. The temporary file is synced, then renamed over the old file.
//!
//! All functions block. The mode of the replaced file is preserved, and its owner where permitted.
//! Its extended attributes and hard links are not.

use std::{os::fd::OwnedFd, time::SystemTime};

use ring::digest::{Context, SHA256};
use rustix::{
    fs::{
        FileType, Gid, Mode, Stat, Timespec, Timestamps, UTIME_OMIT, Uid, fchmod, fchown, fstat, fsync,
        futimens,
    },
    io::Errno,
};

use super::{
    change,
    entry::{FileEntry, timespec},
    error::{FileError, map_errno},
    path::RelPath,
    root::{EntryLocation, WorkspaceRoot},
    temp::TempFile,
};

const DEFAULT_MODE: u32 = 0o644;

#[derive(Debug, Clone, Default)]
pub struct WriteOptions {
    /// Permission bits; `None` for those of the replaced file, or 0644 for a new one.
    pub mode: Option<u32>,
    /// Expected SHA-256 of the content.
    pub sha256: Option<[u8; 32]>,
    /// Whether an existing entry is an error.
    pub create_only: bool,
    /// Whether missing parent directories are created.
    pub make_parents: bool,
    /// Modification time; `None` for the time of the write.
    pub modified: Option<SystemTime>,
}

/// Result of a completed write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenFile {
    /// Metadata of the file after the write.
    pub entry: FileEntry,
    pub sha256: [u8; 32],
    /// Whether the file did not exist before.
    pub created: bool,
}

/// A file being written. Dropped before [`Self::finish`], it leaves nothing behind.
pub(super) struct FileWriter {
    path: RelPath,
    location: EntryLocation,
    options: WriteOptions,
    temp: TempFile,
    file: OwnedFd,
    digest: Context,
    length: u64,
}

impl FileWriter {
    pub(super) fn open(
        root: &WorkspaceRoot,
        path: RelPath,
        options: WriteOptions,
    ) -> Result<Self, FileError> {
        if options.make_parents {
            change::make_parents(root, &path)?;
        }
        // With create_only a symbolic link counts as an existing entry.
        let location = if options.create_only { root.locate(&path)? } else { root.destination(&path)? };
        check_replaceable(&path, &options, location.stat()?.as_ref())?;
        let dir = location
            .dir
            .try_clone()
            .map_err(|e| map_errno("open", &path)(Errno::from_io_error(&e).unwrap_or(Errno::MFILE)))?;
        let (temp, file) = root.temp_files().create(dir).map_err(map_errno("write", &path))?;
        Ok(Self { path, location, options, temp, file, digest: Context::new(&SHA256), length: 0 })
    }

    /// Returns the number of bytes written so far.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn write(&mut self, mut data: &[u8]) -> Result<(), FileError> {
        self.digest.update(data);
        self.length += data.len() as u64;
        while !data.is_empty() {
            match rustix::io::write(&self.file, data) {
                Ok(written) => data = &data[written..],
                Err(Errno::INTR) => {}
                Err(errno) => return Err(map_errno("write", &self.path)(errno)),
            }
        }
        Ok(())
    }

    /// Checks the hash, applies the attributes, syncs and renames.
    pub(super) fn finish(mut self) -> Result<WrittenFile, FileError> {
        let sha256 = self.check_digest()?;
        let old = self.location.stat()?;
        check_replaceable(&self.path, &self.options, old.as_ref())?;
        let failed = map_errno("write", &self.path);
        self.apply_attributes(old.as_ref()).map_err(&failed)?;
        fsync(&self.file).map_err(&failed)?;
        let entry = FileEntry::new(&self.location.name, &fstat(&self.file).map_err(&failed)?, Vec::new());
        self.temp
            .rename(&self.location.dir, &self.location.name, !self.options.create_only)
            .map_err(&failed)?;
        self.location.sync_directory().map_err(&failed)?;
        Ok(WrittenFile { entry, sha256, created: old.is_none() })
    }

    fn check_digest(&mut self) -> Result<[u8; 32], FileError> {
        let digest = std::mem::replace(&mut self.digest, Context::new(&SHA256)).finish();
        let mut got = [0; 32];
        got.copy_from_slice(digest.as_ref());
        match self.options.sha256 {
            Some(promised) if promised != got => Err(FileError::DigestMismatch {
                path: self.path.to_string(),
                promised: hex(&promised),
                got: hex(&got),
            }),
            _ => Ok(got),
        }
    }

    /// Sets owner, mode and modification time.
    fn apply_attributes(&self, old: Option<&Stat>) -> Result<(), Errno> {
        if let Some(old) = old {
            let ours = fstat(&self.file)?;
            if (old.st_uid, old.st_gid) != (ours.st_uid, ours.st_gid) {
                let owner = (Uid::from_raw(old.st_uid), Gid::from_raw(old.st_gid));
                // Only root may change the owner. Otherwise the agent's user owns the new file, as
                // with most editors.
                let _kept = fchown(&self.file, Some(owner.0), Some(owner.1));
            }
        }
        let old_mode = old.map_or(DEFAULT_MODE, |old| old.st_mode & 0o7777);
        fchmod(&self.file, Mode::from_raw_mode(self.options.mode.unwrap_or(old_mode)))?;
        match self.options.modified {
            Some(at) => {
                let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
                futimens(&self.file, &Timestamps { last_access: omit, last_modification: timespec(at) })
            }
            None => Ok(()),
        }
    }
}

impl std::fmt::Debug for FileWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileWriter")
            .field("path", &self.path)
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

fn check_replaceable(path: &RelPath, options: &WriteOptions, old: Option<&Stat>) -> Result<(), FileError> {
    let Some(old) = old else { return Ok(()) };
    if options.create_only {
        return Err(FileError::Exists { path: path.to_string() });
    }
    let problem = match FileType::from_raw_mode(old.st_mode) {
        FileType::RegularFile | FileType::Symlink => return Ok(()),
        FileType::Directory => "is a directory",
        _ => "is a pipe, a socket or a device",
    };
    Err(FileError::WrongKind { path: path.to_string(), problem })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
