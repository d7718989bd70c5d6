//! Reads a file for an archive and detects whether it changed meanwhile.

use std::{fs::File, io::Read};

use rustix::{
    fs::{Mode, OFlags, openat},
    io::Errno,
};

use super::{
    memory_budget::{Cancelled, MemoryBudget},
    metadata::EntryMetadata,
    walk::{CHANGED, WalkEntry, skip_reason},
};
use crate::files::FileKind;

/// A regular file, open for reading.
#[derive(Debug)]
pub(super) struct FileSource {
    file: File,
    /// Metadata at the time of opening.
    pub(super) metadata: EntryMetadata,
    left: u64,
}

impl FileSource {
    /// Opens the file, and waits if it changed a moment ago (see
    /// [`MemoryBudget::wait_mtime_granularity`]). The inner error is the reason for skipping the
    /// file.
    pub(super) fn open(found: &WalkEntry, budget: &MemoryBudget) -> Result<Result<Self, String>, Cancelled> {
        match Self::try_open(found) {
            Ok(source) if budget.wait_mtime_granularity(source.metadata.changed)? => {
                Ok(Self::try_open(found))
            }
            opened => Ok(opened),
        }
    }

    fn try_open(found: &WalkEntry) -> Result<Self, String> {
        // A pipe that replaced the file meanwhile must not block the thread.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = File::from(openat(&found.dir, &found.name, flags, Mode::empty()).map_err(skip_reason)?);
        let metadata = EntryMetadata::of(&file).map_err(skip_reason)?;
        if metadata.kind != FileKind::File {
            return Err(CHANGED.to_owned());
        }
        Ok(Self { file, left: metadata.size, metadata })
    }

    /// Reads the next `most` bytes into `block`, or fewer at the end.
    pub(super) fn read(&mut self, block: &mut Vec<u8>, most: usize) -> Result<(), String> {
        let most = usize::try_from(self.left).map_or(most, |left| left.min(most));
        read_up_to(&self.file, block, most).map_err(skip_reason)?;
        self.left -= block.len() as u64;
        Ok(())
    }

    /// Checks after the last byte that the file is unchanged.
    pub(super) fn finish(self) -> Result<(), String> {
        let changed = || Err(CHANGED.to_owned());
        let mut more = Vec::with_capacity(1);
        read_up_to(&self.file, &mut more, 1).map_err(skip_reason)?;
        let same = EntryMetadata::of(&self.file).map_err(skip_reason)? == self.metadata;
        if self.left > 0 || !more.is_empty() || !same { changed() } else { Ok(()) }
    }
}

/// Reads up to `most` bytes in total, or fewer at the end of the file.
pub(super) fn read_up_to(mut file: &File, block: &mut Vec<u8>, most: usize) -> Result<(), Errno> {
    block.clear();
    block.reserve_exact(most);
    let read = file.by_ref().take(most as u64).read_to_end(block);
    read.map(drop).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}
