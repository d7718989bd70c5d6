//! What can go wrong with a process, for whoever asked.

use super::ProcessId;
use crate::{admission::Rejection, child::ExitStatus, spawn::SpawnError};

/// Why a request about a process was not done.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// A field is missing or outside its range.
    #[error("{field}: allowed is {allowed}")]
    BadField {
        /// As in the .proto.
        field: &'static str,
        /// What is allowed.
        allowed: &'static str,
    },
    /// There is none with this id.
    #[error("there is no process {0}; ended ones are kept for 10 minutes")]
    NotFound(ProcessId),
    /// The program could not be started; nothing runs.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// A position or input for another life of the log.
    #[error("this was meant for an earlier life of the process; it is now in epoch {epoch}")]
    StaleEpoch {
        /// The current one.
        epoch: u64,
    },
    /// A position behind the end of a log.
    #[error("there is nothing at this position yet; {stream} ends at {next}")]
    BadOffset {
        /// "stdout" or "stderr".
        stream: &'static str,
        /// Where it ends.
        next: u64,
    },
    /// Input with a hole before it.
    #[error("input is missing before this; send from offset {expected}")]
    Hole {
        /// Where to go on.
        expected: u64,
    },
    /// It has ended, so it cannot be signalled.
    #[error("the process has ended")]
    Ended {
        /// How, if its output is over too.
        exit: Option<ExitStatus>,
    },
    /// All places are taken.
    #[error("{limit} processes are running already, or have ended and are still being watched")]
    TooManyProcesses {
        /// How many there are.
        limit: usize,
    },
    /// All places for watchers are taken.
    #[error("{limit} streams of processes are open already")]
    TooManyStreams {
        /// How many there are.
        limit: usize,
    },
    /// A message is too large.
    #[error("{what} is larger than {limit} bytes")]
    TooLarge {
        /// Which field.
        what: &'static str,
        /// What is allowed.
        limit: usize,
    },
    /// The workspace takes nothing now.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The workspace ends.
    #[error("the workspace is shutting down")]
    ShuttingDown,
    /// A fault of the agent's own; the process was killed.
    #[error("a fault in the agent ended the process")]
    Fault,
}
