//! Errors of file operations. Independent of gRPC and HTTP; `api` maps them to responses.

use rustix::io::Errno;

use super::path::{BadPath, RelPath};
use crate::admission::Rejection;

/// Reason why a file operation failed. Each `path` is relative to the root.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// The path is malformed, too long, or the root where the operation needs an entry.
    #[error("path {path} {problem}")]
    BadPath {
        /// As the client sent it.
        path: String,
        problem: BadPath,
    },
    /// Another argument is outside its range.
    #[error("{field}: must be {allowed}")]
    BadField {
        /// Name of the field in the proto.
        field: &'static str,
        /// Allowed values, in words that follow "must be".
        allowed: &'static str,
    },
    #[error("{path}: no such file or directory")]
    NotFound { path: String },
    #[error("{path}: already exists")]
    Exists { path: String },
    /// The entry has another kind than the operation needs.
    #[error("{path}: {problem}")]
    WrongKind {
        path: String,
        /// The actual kind, or the required kind that it does not have.
        problem: &'static str,
    },
    #[error("{path}: the directory is not empty")]
    NotEmpty { path: String },
    #[error(
        "{path}: a symbolic link in the path is absolute, loops, leaves the workspace or changed meanwhile"
    )]
    Escapes { path: String },
    /// The disk or a quota is full. The old content is untouched.
    #[error("{path}: the disk is full ({errno}); remove files and retry")]
    DiskFull {
        /// The file that was being written, or the extraction that lacks space.
        path: String,
        /// Either ENOSPC or EDQUOT.
        errno: Errno,
    },
    /// The agent or the machine has no file descriptor left.
    #[error("{path}: too many open files ({errno})")]
    NoDescriptors {
        /// The file that was being opened.
        path: String,
        /// Either EMFILE or ENFILE.
        errno: Errno,
    },
    /// A message exceeds its limit, or a file exceeds the limit of its file system.
    #[error("{what} is too large{}", describe_limit(.limit.as_ref()))]
    TooLarge {
        what: String,
        /// In bytes, if it is a fixed limit.
        limit: Option<usize>,
    },
    /// The content differs from the SHA-256 that the client announced. Nothing was changed.
    #[error("{path}: the content's SHA-256 is {got}, not {promised}; nothing was written")]
    DigestMismatch {
        path: String,
        /// As 64 hexadecimal digits.
        promised: String,
        /// As 64 hexadecimal digits.
        got: String,
    },
    #[error("{path}: offset {offset} lies after the end of the file at {size}")]
    BadOffset { path: String, offset: u64, size: u64 },
    #[error("{path}: the file shrank to {end} bytes while it was read; read it again")]
    Shrunk {
        path: String,
        /// Length of the file now, in bytes.
        end: u64,
    },
    #[error("a chunk at offset {offset} leaves a gap; send from offset {expected}")]
    InputGap {
        /// Offset of the rejected chunk.
        offset: u64,
        /// Offset of the next byte expected.
        expected: u64,
    },
    #[error("no such upload: it expired, failed or never existed; start again")]
    UploadNotFound { id: String },
    /// [`super::MAX_UPLOADS`] uploads are in progress.
    #[error("{limit} uploads are already in progress; finish one or retry later")]
    TooManyUploads { limit: usize },
    /// All stream permits of this kind are in use.
    #[error("{limit} file reads, writes or listings of this kind are already open; close one or retry later")]
    TooManyStreams { limit: usize },
    /// The admission gate rejected the operation.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// An internal fault of the agent.
    #[error("internal fault of the agent while {operation}")]
    Fault {
        /// Activity of the agent, such as `writing a file`.
        operation: &'static str,
    },
    /// Any other error of the operating system.
    #[error("cannot {operation} {path}: {errno}")]
    Io { operation: &'static str, path: String, errno: Errno },
}

fn describe_limit(limit: Option<&usize>) -> String {
    limit.map_or_else(
        || " for its file system; write less data".to_owned(),
        |limit| format!("; send at most {limit} bytes at once"),
    )
}

/// Maps an errno of an operation on `path` to the error that clients see.
pub(crate) fn map_errno<'a>(operation: &'static str, path: &'a RelPath) -> impl Fn(Errno) -> FileError + 'a {
    move |errno| {
        let path = path.to_string();
        match errno {
            Errno::NOENT => FileError::NotFound { path },
            Errno::EXIST => FileError::Exists { path },
            Errno::NOTEMPTY => FileError::NotEmpty { path },
            Errno::NOTDIR => {
                FileError::WrongKind { path, problem: "is not a directory, or lies below a file" }
            }
            Errno::ISDIR => FileError::WrongKind { path, problem: "is a directory" },
            Errno::LOOP => FileError::Escapes { path },
            Errno::NAMETOOLONG => FileError::BadPath { path, problem: BadPath::TooLong },
            Errno::NOSPC | Errno::DQUOT => FileError::DiskFull { path, errno },
            Errno::MFILE | Errno::NFILE => FileError::NoDescriptors { path, errno },
            Errno::FBIG => FileError::TooLarge { what: path, limit: None },
            _ => FileError::Io { operation, path, errno },
        }
    }
}
