//! Errors of starting, watching, writing to and signalling processes. `api` maps them to gRPC
//! reasons.

use super::ProcessId;
use crate::{admission::Rejection, child::ExitStatus, spawn::SpawnError};

/// Reason why a request about a process failed.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// A field is missing or outside its range.
    #[error("{field}: must be {allowed}")]
    BadField {
        /// Name of the field in the proto.
        field: &'static str,
        /// Allowed values, as the end of the sentence "must be …".
        allowed: &'static str,
    },
    #[error("process {0} does not exist; ended processes are retained for at most 10 minutes")]
    NotFound(ProcessId),
    /// The program could not be started; nothing runs.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// The position or input is for another epoch than the current one.
    #[error("the request is for another epoch; the process is in epoch {epoch}")]
    StaleEpoch { epoch: u64 },
    /// The position is after the end of a byte log.
    #[error("the position is after the end of {stream} at offset {next}; start there or earlier")]
    BadOffset {
        /// Either "stdout" or "stderr".
        stream: &'static str,
        /// Offset where the log ends now.
        next: u64,
    },
    /// Bytes before the input are missing.
    #[error("input before this message is missing; send again from offset {expected}")]
    InputGap {
        /// Offset of the next byte expected.
        expected: u64,
    },
    /// The process has ended and cannot be signalled.
    #[error("the process has ended")]
    Ended {
        /// Exit code or signal; `None` while the output is not yet complete.
        exit: Option<ExitStatus>,
    },
    /// The policy's limit on processes is reached.
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
    #[error("the agent is shutting down")]
    ShuttingDown,
    /// An internal fault of the agent; the process was killed.
    #[error("an internal fault of the agent ended the process")]
    Fault,
}
