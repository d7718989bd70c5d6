//! A little of the disk kept back: when it is full, what is there can still be ended and deleted, which is how a disk gets
//! room again.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::fs::{FallocateFlags, fallocate};

/// Kept back, in bytes: hundreds of changed records and their pages.
const RESERVE_BYTES: u64 = 1024 * 1024;

/// The file that holds the place.
#[derive(Debug)]
pub(super) struct DiskReserve {
    path: PathBuf,
    allocated: AtomicBool,
}

impl DiskReserve {
    /// Nothing is kept back yet.
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, allocated: AtomicBool::new(false) }
    }

    /// Keeps it back, unless it is already or there is no room: then the next call tries again.
    pub(super) fn ensure(&self) {
        if self.allocated.load(Ordering::Relaxed) {
            return;
        }
        match self.allocate() {
            Ok(()) => self.allocated.store(true, Ordering::Relaxed),
            Err(error) => {
                tracing::debug!(%error, path = %self.path.display(), "no disk is kept back");
                // Half of it would be given up for nothing.
                let _ = fs::remove_file(&self.path);
            }
        }
    }

    fn allocate(&self) -> io::Result<()> {
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&self.path)?;
        Ok(fallocate(&file, FallocateFlags::empty(), 0, RESERVE_BYTES)?)
    }

    /// Gives it up; whether there was any.
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
    fn what_is_kept_back_takes_room_and_is_given_up_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("reserve");
        let reserve = DiskReserve::new(path.clone());
        reserve.ensure();
        let blocks = fs::metadata(&path).unwrap().blocks();
        assert!(blocks * 512 >= RESERVE_BYTES, "it really takes the room: {blocks} blocks");
        assert!(reserve.release());
        assert!(!path.exists() && !reserve.release());
        reserve.ensure();
        assert!(path.exists(), "and it is taken again");
    }
}
