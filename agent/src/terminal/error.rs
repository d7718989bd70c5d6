//! Errors of creating, attaching to, typing into, signalling and closing terminals. `api` maps them
//! to gRPC reasons.

use std::io;

use super::{TerminalExit, TerminalId, pty::PtyOpenError};
use crate::{admission::Rejection, spawn::SpawnError};

/// Reason why a request about a terminal failed.
#[derive(Debug, thiserror::Error)]
pub enum TerminalError {
    /// A field is missing or outside its range.
    #[error("{field}: must be {allowed}")]
    BadField {
        /// Name of the field in the proto.
        field: &'static str,
        /// Allowed values, as the end of the sentence "must be …".
        allowed: &'static str,
    },
    #[error("terminal {0} does not exist; it may have been closed")]
    NotFound(TerminalId),
    /// No open watch has this id.
    #[error("watch {0} does not exist or has ended; open a new one")]
    WatchNotFound(String),
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// The system has no PTY or no file descriptor left.
    #[error(transparent)]
    Pty(#[from] PtyOpenError),
    /// The input was sent for another epoch than the current one.
    #[error("the input is for another epoch of the terminal; attach again to type in epoch {epoch}")]
    StaleEpoch {
        /// Current epoch of the log.
        epoch: u64,
    },
    /// Bytes before this input are missing.
    #[error("input before this message is missing; send again from offset {expected}")]
    InputGap {
        /// Offset from which the client has to send.
        expected: u64,
    },
    /// The client was evicted because it was inactive, so the agent cannot tell which of its input
    /// was written.
    #[error(
        "the client was inactive for too long, so the agent cannot tell whether this input was typed; \
             send only new input, from offset {expected}"
    )]
    ClientEvicted {
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
    #[error("this stream is read-only; attach without read_only to type, resize or signal")]
    ReadOnly,
    #[error("the terminal has ended")]
    TerminalEnded(TerminalExit),
    /// The admission gate rejected the request.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The requested position lies after the end of the log.
    #[error("the position is after the end of the log at offset {next}; start there or earlier")]
    BadOffset {
        /// Offset of the end of the log.
        next: u64,
    },
    /// The policy's limit is reached, and no ended terminal is left to remove.
    #[error("the limit of {limit} terminals is reached; close one")]
    TooManyTerminals { limit: usize },
    /// A limit on viewers, clients or streams is reached.
    #[error("the limit of {limit} {what} is reached; close one or retry later")]
    TooManyStreams {
        /// Kind of stream, in the plural.
        what: &'static str,
        limit: usize,
    },
    /// The session leader did not exit within 5 s after KILL, for example because it is in
    /// uninterruptible sleep.
    #[error("cannot close the terminal: its program did not exit within 5 s after KILL; retry later")]
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
