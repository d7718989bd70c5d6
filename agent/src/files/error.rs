//! What can go wrong with a file. Must not know how a client is told.

use rustix::io::Errno;

use super::path::{BadPath, RelPath};
use crate::admission::Rejection;

/// Why a call did not do what it was asked for. `path` is relative to the root.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// The path cannot be one below the root.
    #[error("the path {path}: {problem}")]
    BadPath {
        /// As it was given.
        path: String,
        /// Why not.
        problem: BadPath,
    },
    /// Another argument is outside its range.
    #[error("{field}: must be {allowed}")]
    BadField {
        /// Which.
        field: &'static str,
        /// What it may be.
        allowed: &'static str,
    },
    /// Nothing is there.
    #[error("{path}: no such file or folder")]
    NotFound {
        /// Where.
        path: String,
    },
    /// Something is there already.
    #[error("{path}: exists already")]
    Exists {
        /// Where.
        path: String,
    },
    /// What is there is of another kind than the call needs.
    #[error("{path}: {problem}")]
    WrongKind {
        /// Where.
        path: String,
        /// What it is, or is not.
        problem: &'static str,
    },
    /// A folder still has entries.
    #[error("{path}: the folder is not empty")]
    NotEmpty {
        /// Which.
        path: String,
    },
    /// A symbolic link on the way leaves the workspace, is absolute, runs in a circle or changed under way.
    #[error("{path}: a symbolic link on the way leaves the workspace, or changed meanwhile")]
    Escapes {
        /// Which.
        path: String,
    },
    /// The disk or the quota is full. The old content is untouched.
    #[error("{path}: the disk is full ({errno})")]
    DiskFull {
        /// What was being written.
        path: String,
        /// ENOSPC or EDQUOT.
        errno: Errno,
    },
    /// The agent or the machine has no descriptor left.
    #[error("{path}: too many open files ({errno})")]
    NoDescriptors {
        /// What was being opened.
        path: String,
        /// EMFILE or ENFILE.
        errno: Errno,
    },
    /// A message, or a file for its file system, is too large.
    #[error("{what} is too large")]
    TooLarge {
        /// What.
        what: String,
        /// In bytes, if there is a fixed one.
        limit: Option<usize>,
    },
    /// The content differs from what its sender promised; nothing was changed.
    #[error("{path}: the content's SHA-256 is {got}, not {promised}; nothing was written")]
    DigestMismatch {
        /// Of the file.
        path: String,
        /// In hexadecimal.
        promised: String,
        /// In hexadecimal.
        got: String,
    },
    /// A range begins behind the end.
    #[error("{path}: offset {offset} lies behind its end at {size}")]
    BadOffset {
        /// Of the file.
        path: String,
        /// Asked for.
        offset: u64,
        /// The file's size.
        size: u64,
    },
    /// A file became shorter than it was when the reading began.
    #[error("{path}: it became shorter while it was read (it ended at {end})")]
    Shrunk {
        /// Of the file.
        path: String,
        /// Where it ended.
        end: u64,
    },
    /// A chunk of an upload does not continue it.
    #[error("a chunk at {offset} came where {expected} was expected")]
    Hole {
        /// Of the chunk.
        offset: u64,
        /// Of the next one.
        expected: u64,
    },
    /// The upload lapsed or never was.
    #[error("no such upload: it lapsed, failed, or was never begun")]
    UploadNotFound {
        /// As asked for.
        id: String,
    },
    /// All places for uploads are taken.
    #[error("{limit} uploads are under way already")]
    TooManyUploads {
        /// How many there are.
        limit: usize,
    },
    /// All places for streams are taken.
    #[error("{limit} such streams are open already")]
    TooManyStreams {
        /// How many there are.
        limit: usize,
    },
    /// The workspace takes nothing now.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// A fault of the agent's own.
    #[error("a fault in the agent while {operation}")]
    Fault {
        /// What was being done.
        operation: &'static str,
    },
    /// The system refused for another reason.
    #[error("{operation} {path}: {errno}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: String,
        /// Why.
        errno: Errno,
    },
}

/// Turns an errno of an operation on `path` into what it means for everybody.
pub(crate) fn map_errno<'a>(operation: &'static str, path: &'a RelPath) -> impl Fn(Errno) -> FileError + 'a {
    move |errno| {
        let path = path.to_string();
        match errno {
            Errno::NOENT => FileError::NotFound { path },
            Errno::EXIST => FileError::Exists { path },
            Errno::NOTEMPTY => FileError::NotEmpty { path },
            Errno::NOTDIR => FileError::WrongKind { path, problem: "is not a folder, or lies below a file" },
            Errno::ISDIR => FileError::WrongKind { path, problem: "is a folder" },
            Errno::LOOP => FileError::Escapes { path },
            Errno::NAMETOOLONG => FileError::BadPath { path, problem: BadPath::TooLong },
            Errno::NOSPC | Errno::DQUOT => FileError::DiskFull { path, errno },
            Errno::MFILE | Errno::NFILE => FileError::NoDescriptors { path, errno },
            Errno::FBIG => FileError::TooLarge { what: path, limit: None },
            _ => FileError::Io { operation, path, errno },
        }
    }
}
