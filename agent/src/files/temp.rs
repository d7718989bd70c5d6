//! Temporary files named `.podling-<run>-<number>.tmp`, in the directory of the file they replace.
//!
//! A temporary file is removed on drop unless it was renamed. A killed agent can leave temporary
//! files behind. A file of another run that is untouched for an hour is stale (an upload expires
//! after ten minutes). A stale file is removed when its directory is listed, or when it prevents
//! the removal of its directory. Listings never show temporary files.

use std::{
    ffi::{OsStr, OsString},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, linkat, mknodat, openat, renameat, statat, symlinkat, unlinkat},
    io::Errno,
};

use super::{rename_without_replacing, unix_system_time};

const PREFIX: &str = ".podling-";
const SUFFIX: &str = ".tmp";
/// Age after which a temporary file of another run is stale.
const STALE_AFTER: Duration = Duration::from_secs(60 * 60);

/// Names temporary files and recognises those of other runs.
#[derive(Debug)]
pub(crate) struct TempFiles {
    run: u64,
    next: AtomicU64,
}

/// A temporary file or link. It is removed on drop unless it was renamed to its final name.
#[derive(Debug)]
pub(crate) struct TempFile {
    dir: OwnedFd,
    name: OsString,
    persisted: bool,
}

impl TempFiles {
    pub(super) fn new() -> Self {
        Self { run: fastrand::u64(..), next: AtomicU64::new(0) }
    }

    /// Creates a file in `dir` that only the agent's user can read until it is finished.
    pub(crate) fn create(&self, dir: OwnedFd) -> Result<(TempFile, OwnedFd), Errno> {
        let name = self.name();
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&dir, &name, flags, Mode::RUSR | Mode::WUSR)?;
        Ok((TempFile { dir, name, persisted: false }, file))
    }

    /// Creates a symbolic link in `dir`.
    pub(crate) fn create_link(&self, dir: OwnedFd, target: &OsStr) -> Result<TempFile, Errno> {
        let name = self.name();
        symlinkat(target, &dir, &name)?;
        Ok(TempFile { dir, name, persisted: false })
    }

    /// Creates a FIFO in `dir` that only the agent's user can open.
    pub(crate) fn create_fifo(&self, dir: OwnedFd) -> Result<TempFile, Errno> {
        let name = self.name();
        mknodat(&dir, &name, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
        Ok(TempFile { dir, name, persisted: false })
    }

    /// Creates a further name in `dir` of the file `of` in `of_dir`. Does not follow a symbolic
    /// link.
    pub(crate) fn create_hard_link(
        &self,
        dir: OwnedFd,
        of_dir: &OwnedFd,
        of: &OsStr,
    ) -> Result<TempFile, Errno> {
        let name = self.name();
        linkat(of_dir, of, &dir, &name, AtFlags::empty())?;
        Ok(TempFile { dir, name, persisted: false })
    }

    fn name(&self) -> OsString {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        OsString::from(format!("{PREFIX}{:016x}-{number:x}{SUFFIX}", self.run))
    }

    /// Removes `name` if it is a stale temporary file of another run. Returns whether it did.
    pub(super) fn remove_stale(&self, dir: BorrowedFd<'_>, name: &OsStr) -> bool {
        if run_of(name).is_none_or(|run| run == self.run) {
            return false;
        }
        let stale = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| {
            let age = SystemTime::now().duration_since(unix_system_time(stat.st_mtime, stat.st_mtime_nsec));
            age.is_ok_and(|age| age >= STALE_AFTER)
        });
        stale && unlinkat(dir, name, AtFlags::empty()).is_ok()
    }
}

/// Returns whether `name` is a temporary file, which listings do not show.
pub(crate) fn is_temp_file(name: &OsStr) -> bool {
    run_of(name).is_some()
}

fn run_of(name: &OsStr) -> Option<u64> {
    let name = name.to_str()?.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    let (run, number) = name.split_once('-')?;
    u64::from_str_radix(number, 16).ok()?;
    (run.len() == 16).then(|| u64::from_str_radix(run, 16).ok())?
}

impl TempFile {
    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    pub(crate) fn name(&self) -> &OsStr {
        &self.name
    }

    /// Renames the file to its final name. Replaces an existing entry only with `replace`.
    pub(crate) fn rename(mut self, dir: impl AsFd, name: &OsStr, replace: bool) -> Result<(), Errno> {
        if replace {
            renameat(&self.dir, &self.name, dir, name)?;
        } else {
            rename_without_replacing(&self.dir, &self.name, dir, name)?;
        }
        self.persisted = true;
        Ok(())
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if !self.persisted
            && let Err(errno) = unlinkat(&self.dir, &self.name, AtFlags::empty())
            && errno != Errno::NOENT
        {
            tracing::warn!(name = ?self.name.as_bytes(), %errno, "failed to remove temporary file");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_temp_names_are_hidden() {
        assert!(is_temp_file(OsStr::new(".podling-0123456789abcdef-1f.tmp")));
        for name in [
            ".podling-notes.tmp",
            ".podling-0123456789abcdef.tmp",
            "podling-0123456789abcdef-1.tmp",
            ".podlingrc",
        ] {
            assert!(!is_temp_file(OsStr::new(name)), "{name} belongs to the user");
        }
    }
}
