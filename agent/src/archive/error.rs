//! What can go wrong with an archive. Must not know how a client is told.

use std::io;

use rustix::io::Errno;

use crate::{admission::Rejection, files::FileError};

/// Why there is no archive, or it was not unpacked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveError {
    /// As with any other call for files.
    #[error(transparent)]
    File(#[from] FileError),
    /// The zip must not be unpacked, or is none.
    #[error("{}: {cause}; nothing was written", entry_or_zip(.entry))]
    Unsafe {
        /// Its name; empty: the zip as a whole.
        entry: String,
        /// What is wrong with it.
        cause: &'static str,
    },
    /// More entries than an archive may have.
    #[error("it has more than {limit} entries")]
    TooManyEntries {
        /// How many there may be.
        limit: u64,
    },
    /// All places for archives are taken.
    #[error("{limit} archives are being made or unpacked already")]
    TooManyArchives {
        /// How many there are.
        limit: usize,
    },
}

fn entry_or_zip(entry: &str) -> &str {
    if entry.is_empty() { "the zip" } else { entry }
}

impl ArchiveError {
    /// About one entry.
    pub(super) fn bad_entry(name: &[u8], cause: &'static str) -> Self {
        Self::Unsafe { entry: String::from_utf8_lossy(name).into_owned(), cause }
    }

    /// About the zip as a whole.
    pub(super) fn bad_zip(cause: &'static str) -> Self {
        Self::Unsafe { entry: String::new(), cause }
    }

    pub(super) fn fault(operation: &'static str) -> Self {
        Self::File(FileError::Fault { operation })
    }
}

impl From<Rejection> for ArchiveError {
    fn from(refused: Rejection) -> Self {
        Self::File(refused.into())
    }
}

/// Why work on an archive stopped.
#[derive(Debug)]
pub(super) enum ArchiveStop {
    /// Nobody takes what comes of it any more.
    ReceiverDropped,
    Failed(ArchiveError),
}

impl<E: Into<ArchiveError>> From<E> for ArchiveStop {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Turns an error with the spool into what it means for everybody.
pub(super) fn spool_error(error: io::Error) -> ArchiveError {
    let path = "the agent's own folder".to_owned();
    let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
    ArchiveError::File(match errno {
        Errno::NOSPC | Errno::DQUOT => FileError::DiskFull { path, errno },
        Errno::MFILE | Errno::NFILE => FileError::NoDescriptors { path, errno },
        errno => FileError::Io { operation: "spooling in", path, errno },
    })
}
