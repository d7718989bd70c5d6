//! An unnamed temporary file outside the user's view. It disappears with its descriptor, even if
//! the agent is killed.

use std::{fs::File, io, path::Path};

use rustix::{
    fs::{Mode, OFlags, unlink},
    io::Errno,
};

/// Creates the file in `directory`.
pub(super) fn create(directory: &Path) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    match rustix::fs::open(directory, flags | OFlags::TMPFILE, mode) {
        Ok(file) => Ok(file.into()),
        // The file system does not support O_TMPFILE.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
            let path = directory.join(format!("spool-{:016x}", fastrand::u64(..)));
            let file = rustix::fs::open(&path, flags | OFlags::CREATE | OFlags::EXCL, mode)?;
            unlink(&path)?;
            Ok(file.into())
        }
        Err(errno) => Err(errno.into()),
    }
}
