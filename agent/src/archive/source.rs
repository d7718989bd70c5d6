//! Reads a file for an archive: its bytes, and whether it was the same file from the first to the last of them.

use std::{fs::File, io::Read};

use rustix::{
    fs::{Mode, OFlags, openat},
    io::Errno,
};

use super::{
    facts::Facts,
    gate::{Ended, Gate},
    walk::{CHANGED, Found, reason},
};
use crate::files::FileKind;

/// A regular file, open.
#[derive(Debug)]
pub(super) struct Source {
    file: File,
    /// When it was opened.
    pub(super) facts: Facts,
    left: u64,
}

impl Source {
    /// Opens it; `Err` says why that is not possible.
    pub(super) fn open(found: &Found, gate: &Gate) -> Result<Result<Self, String>, Ended> {
        match Self::try_open(found) {
            Ok(source) if gate.settle(source.facts.changed)? => Ok(Self::try_open(found)),
            opened => Ok(opened),
        }
    }

    fn try_open(found: &Found) -> Result<Self, String> {
        // A pipe that took the file's place meanwhile must not hold us.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = File::from(openat(&found.dir, &found.name, flags, Mode::empty()).map_err(reason)?);
        let facts = Facts::of(&file).map_err(reason)?;
        if facts.kind != FileKind::File {
            return Err(CHANGED.to_owned());
        }
        Ok(Self { file, left: facts.size, facts })
    }

    /// The next `most` bytes into `block`; fewer at the end.
    pub(super) fn read(&mut self, block: &mut Vec<u8>, most: usize) -> Result<(), String> {
        let most = usize::try_from(self.left).map_or(most, |left| left.min(most));
        fill(&self.file, block, most).map_err(reason)?;
        self.left -= block.len() as u64;
        Ok(())
    }

    /// After the last byte: `Err` if it changed.
    pub(super) fn finish(self) -> Result<(), String> {
        let changed = || Err(CHANGED.to_owned());
        let mut more = Vec::with_capacity(1);
        fill(&self.file, &mut more, 1).map_err(reason)?;
        let same = Facts::of(&self.file).map_err(reason)? == self.facts;
        if self.left > 0 || !more.is_empty() || !same { changed() } else { Ok(()) }
    }
}

/// Reads up to `most` bytes in all; fewer at the end.
pub(super) fn fill(mut file: &File, block: &mut Vec<u8>, most: usize) -> Result<(), Errno> {
    block.clear();
    block.reserve_exact(most);
    let read = file.by_ref().take(most as u64).read_to_end(block);
    read.map(drop).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}
