//! What can go wrong with a terminal, for whoever asked.

use std::io;

use super::{TerminalExit, TerminalId, pty::PtyOpenError};
use crate::{admission::Rejection, spawn::SpawnError};

/// Why a request about a terminal was not done.
#[derive(Debug, thiserror::Error)]
pub enum TerminalError {
    /// A field is missing or outside its range.
    #[error("{field}: allowed is {allowed}")]
    BadField {
        /// As in the .proto.
        field: &'static str,
        /// What is allowed.
        allowed: &'static str,
    },
    /// There is none with this id.
    #[error("there is no terminal {0}; it may have been closed")]
    NotFound(TerminalId),
    /// The watch is over.
    #[error("there is no watch {0}; it is over")]
    WatchNotFound(String),
    /// The program could not be started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// No PTY, or no descriptor for one.
    #[error(transparent)]
    Pty(#[from] PtyOpenError),
    /// Input for another life of the log.
    #[error("this was meant for an earlier life of the terminal; it is now in epoch {epoch}")]
    StaleEpoch {
        /// The current one.
        epoch: u64,
    },
    /// Input with a hole before it.
    #[error("input is missing before this; send from offset {expected}")]
    InputHole {
        /// Where to go on.
        expected: u64,
    },
    /// Input of a client that was away for long, while many others typed.
    #[error(
        "the terminal no longer knows this client's input, so it cannot tell whether this was typed already; new input goes on at offset {expected}"
    )]
    InputForgotten {
        /// Where new input goes on.
        expected: u64,
    },
    /// The program does not read its input.
    #[error(
        "the program does not read its input and enough of it waits; send from offset {expected} after the next acknowledgement"
    )]
    InputFull {
        /// Where to go on.
        expected: u64,
    },
    /// The stream was opened for watching only.
    #[error("this stream is read-only")]
    ReadOnly,
    /// It has ended.
    #[error("the terminal has ended")]
    Ended(TerminalExit),
    /// The workspace takes nothing now.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// A position behind the end of the log.
    #[error("this position lies beyond the end of the log, which is at {next}")]
    BadOffset {
        /// The end.
        next: u64,
    },
    /// As many as the policy allows, none of them ended.
    #[error("there are {limit} terminals already; close one")]
    TooManyTerminals {
        /// How many may be.
        limit: usize,
    },
    /// Too many viewers or clients.
    #[error("there are {limit} {what} already; end one")]
    TooManyStreams {
        /// Of what.
        what: &'static str,
        /// How many may be.
        limit: usize,
    },
    /// Its processes did not end, not even killed.
    #[error("the terminal's processes did not end, although they were killed")]
    ProcessesSurvivedKill,
    /// The agent ends.
    #[error("the agent is shutting down")]
    ShuttingDown,
    /// The operating system refused.
    #[error("cannot {operation}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// Why not.
        source: io::Error,
    },
}
