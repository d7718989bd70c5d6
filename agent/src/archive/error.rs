//! Errors of creating and extracting archives. Independent of gRPC and HTTP; `api` maps them to
//! responses.

use std::io;

use rustix::io::Errno;

use crate::{admission::Rejection, files::FileError};

/// Reason why an archive could not be created or extracted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveError {
    /// An error that other file operations have too.
    #[error(transparent)]
    File(#[from] FileError),
    /// The received file is not a zip, or it must not be extracted.
    #[error("{}: {cause}; nothing was written", entry_or_zip(.entry))]
    Unsafe {
        /// Name of the entry; empty if the zip as a whole is at fault.
        entry: String,
        /// English text for people.
        cause: &'static str,
    },
    #[error("the archive has more than {limit} entries; split it into several archives")]
    TooManyEntries { limit: u64 },
    /// [`super::MAX_ARCHIVES`] archives are in progress.
    #[error("{limit} archives are already being created or extracted; retry later")]
    TooManyArchives { limit: usize },
}

fn entry_or_zip(entry: &str) -> &str {
    if entry.is_empty() { "the zip" } else { entry }
}

impl ArchiveError {
    pub(super) fn bad_entry(name: &[u8], cause: &'static str) -> Self {
        Self::Unsafe { entry: String::from_utf8_lossy(name).into_owned(), cause }
    }

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

/// Reason why the threads of an archive stopped before its end.
#[derive(Debug)]
pub(super) enum ArchiveStop {
    /// The client dropped the stream.
    ReceiverDropped,
    Failed(ArchiveError),
}

impl<E: Into<ArchiveError>> From<E> for ArchiveStop {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Maps an error of the spool file to the error a client sees.
pub(super) fn spool_error(error: io::Error) -> ArchiveError {
    let path = "the agent's own directory".to_owned();
    let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
    ArchiveError::File(match errno {
        Errno::NOSPC | Errno::DQUOT => FileError::DiskFull { path, errno },
        Errno::MFILE | Errno::NFILE => FileError::NoDescriptors { path, errno },
        errno => FileError::Io { operation: "write to", path, errno },
    })
}
