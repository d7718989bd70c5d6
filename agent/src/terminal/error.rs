//! Errors of requests about terminals.

use std::io;

use super::{TerminalExit, TerminalId, pty::PtyOpenError};
use crate::{admission::Rejection, spawn::SpawnError};

/// Reason why a request about a terminal failed.
#[derive(Debug, thiserror::Error)]
pub enum TerminalError {
    /// A field is missing or outside its range.
    #[error("invalid {field}: {allowed}")]
    BadField {
        /// Name of the field in the proto.
        field: &'static str,
        /// Allowed range, in words.
        allowed: &'static str,
    },
    #[error("terminal {0} does not exist; it may have been closed")]
    NotFound(TerminalId),
    /// No open watch has this id.
    #[error("watch {0} does not exist; it has ended")]
    WatchNotFound(String),
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// The system has no PTY or no file descriptor left.
    #[error(transparent)]
    Pty(#[from] PtyOpenError),
    /// The input was sent for an earlier epoch of the log.
    #[error("input is for an earlier run of the terminal, which is now in epoch {epoch}")]
    StaleEpoch {
        /// Current epoch of the log.
        epoch: u64,
    },
    /// Bytes before this input are missing.
    #[error("earlier input is missing; send from offset {expected}")]
    InputHole {
        /// Offset from which the client has to send.
        expected: u64,
    },
    /// The client was evicted while it was away, so its earlier offsets are unknown.
    #[error(
        "the client was away for too long, so it is unknown whether this input was already typed; \
             new input continues at offset {expected}"
    )]
    InputForgotten {
        /// Offset at which new input continues.
        expected: u64,
    },
    /// The input queue is full because the program does not read.
    #[error(
        "the input queue is full because the program does not read; \
             send from offset {expected} after the next acknowledgement"
    )]
    InputFull {
        /// Offset from which the client has to send.
        expected: u64,
    },
    /// The attachment is read-only.
    #[error("this stream is read-only")]
    ReadOnly,
    #[error("the terminal has ended")]
    Ended(TerminalExit),
    /// The admission gate rejected the request.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The requested position lies after the end of the log.
    #[error("position is after the end of the log, which is at offset {next}")]
    BadOffset {
        /// Offset of the end of the log.
        next: u64,
    },
    /// The policy's limit is reached, and no terminal has ended.
    #[error("the limit of {limit} terminals is reached; close one")]
    TooManyTerminals { limit: usize },
    /// A limit on viewers, clients or streams is reached.
    #[error("the limit of {limit} {what} is reached; close one")]
    TooManyStreams {
        /// Kind of stream, in the plural.
        what: &'static str,
        limit: usize,
    },
    /// Processes of the session survived KILL for 5 s.
    #[error("the terminal's processes did not exit after KILL")]
    ProcessesSurvivedKill,
    #[error("the agent is shutting down")]
    ShuttingDown,
    /// A system call failed.
    #[error("cannot {operation}")]
    Io {
        /// Operation that failed, as a verb phrase.
        operation: &'static str,
        source: io::Error,
    },
}
