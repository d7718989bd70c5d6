//! Errors of process operations.

use super::ProcessId;
use crate::{admission::Rejection, child::ExitStatus, spawn::SpawnError};

/// Why a request about a process failed.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// A field is missing or outside its range.
    #[error("{field}: allowed is {allowed}")]
    BadField {
        /// As in the .proto.
        field: &'static str,
        allowed: &'static str,
    },
    /// No process has this id.
    #[error("there is no process {0}; ended ones are kept for 10 minutes")]
    NotFound(ProcessId),
    /// The program could not be started; nothing runs.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// A position or input belongs to an earlier epoch.
    #[error("this was meant for an earlier life of the process; it is now in epoch {epoch}")]
    StaleEpoch {
        /// The current epoch.
        epoch: u64,
    },
    /// A position behind the end of a byte log.
    #[error("there is nothing at this position yet; {stream} ends at {next}")]
    BadOffset {
        /// "stdout" or "stderr".
        stream: &'static str,
        /// Offset where the log ends now.
        next: u64,
    },
    /// Input that leaves a gap behind the bytes received so far.
    #[error("input is missing before this; send from offset {expected}")]
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
    #[error("{limit} processes are running already, or have ended and are still being watched")]
    TooManyProcesses { limit: usize },
    /// All watcher permits are in use.
    #[error("{limit} streams of processes are open already")]
    TooManyStreams { limit: usize },
    /// A message field exceeds its limit.
    #[error("{what} is larger than {limit} bytes")]
    TooLarge {
        /// Name of the field.
        what: &'static str,
        /// In bytes.
        limit: usize,
    },
    /// The admission gate rejected the request.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    #[error("the workspace is shutting down")]
    ShuttingDown,
    /// An internal fault of the agent; the process was killed.
    #[error("a fault in the agent ended the process")]
    Fault,
}
