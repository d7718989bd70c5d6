//! Reserved disk space. It is used on a full disk, so that existing workspaces can still be stopped
//! and deleted, which frees space again.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::fs::{FallocateFlags, fallocate};

/// Size of the reserve, in bytes. Suffices for hundreds of changed records and their pages.
const RESERVE_BYTES: u64 = 1024 * 1024;

/// A file that occupies the reserved space.
#[derive(Debug)]
pub(super) struct DiskReserve {
    path: PathBuf,
    allocated: AtomicBool,
}

impl DiskReserve {
    /// Creates the handle. [`Self::ensure`] allocates the space.
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, allocated: AtomicBool::new(false) }
    }

    /// Allocates the reserve if it is not allocated yet. A failure is logged, and the next call
    /// retries.
    pub(super) fn ensure(&self) {
        if self.allocated.load(Ordering::Relaxed) {
            return;
        }
        match self.allocate() {
            Ok(()) => self.allocated.store(true, Ordering::Relaxed),
            Err(error) => {
                tracing::debug!(%error, path = %self.path.display(), "failed to allocate the disk reserve");
                // A partial allocation would take space from the database.
                let _ = fs::remove_file(&self.path);
            }
        }
    }

    fn allocate(&self) -> io::Result<()> {
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&self.path)?;
        Ok(fallocate(&file, FallocateFlags::empty(), 0, RESERVE_BYTES)?)
    }

    /// Frees the reserve. Returns whether there was one.
    pub(super) fn release(&self) -> bool {
        self.allocated.store(false, Ordering::Relaxed);
        fs::remove_file(&self.path).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn reserve_occupies_space_and_is_released_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("reserve");
        let reserve = DiskReserve::new(path.clone());
        reserve.ensure();
        let blocks = fs::metadata(&path).unwrap().blocks();
        assert!(blocks * 512 >= RESERVE_BYTES, "the reserve occupies disk space: {blocks} blocks");
        assert!(reserve.release());
        assert!(!path.exists() && !reserve.release());
        reserve.ensure();
        assert!(path.exists(), "the reserve is allocated again");
    }
}
