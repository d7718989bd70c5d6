//! Errors of process operations.

use super::ProcessId;
use crate::{admission::Rejection, child::ExitStatus, spawn::SpawnError};

/// Why a request about a process failed.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// A field is missing or outside its range.
    #[error("{field}: must be {allowed}")]
    BadField {
        /// As in the .proto.
        field: &'static str,
        allowed: &'static str,
    },
    /// No process has this id.
    #[error("no process {0}; ended processes are retained for 10 minutes")]
    NotFound(ProcessId),
    /// The program could not be started; nothing runs.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// A position or input belongs to an earlier epoch.
    #[error("the request is for an earlier epoch; the current epoch is {epoch}")]
    StaleEpoch { epoch: u64 },
    /// A position behind the end of a byte log.
    #[error("the position lies behind the end of {stream} at {next}")]
    BadOffset {
        /// Either "stdout" or "stderr".
        stream: &'static str,
        /// Offset where the log ends now.
        next: u64,
    },
    /// Input that leaves a gap behind the bytes received so far.
    #[error("the input leaves a gap; send from offset {expected}")]
    Hole {
        /// Offset of the next byte expected.
        expected: u64,
    },
    /// The process has ended and cannot be signalled.
    #[error("the process has ended")]
    Ended {
        /// How it ended; `None` while its output is not yet complete.
        exit: Option<ExitStatus>,
    },
    /// The claim's process limit is reached.
    #[error("{limit} processes are already running or watched; end one or retry later")]
    TooManyProcesses { limit: usize },
    /// All watcher permits are in use.
    #[error("{limit} process streams are already open; close one or retry later")]
    TooManyStreams { limit: usize },
    /// A message field exceeds its limit.
    #[error("{what} is larger than {limit} bytes")]
    TooLarge {
        /// Name of the field.
        what: &'static str,
        /// Largest permitted size in bytes.
        limit: usize,
    },
    /// The admission gate rejected the request.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    #[error("the workspace is shutting down")]
    ShuttingDown,
    /// An internal fault of the agent; the process was killed.
    #[error("an internal fault of the agent ended the process")]
    Fault,
}
