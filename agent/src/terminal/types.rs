//! Vocabulary of terminals: ids, sizes, input, frames and errors. The types hold values and own no
//! state.

use std::{collections::HashMap, io, sync::Arc, time::SystemTime};

use bytes::Bytes;
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use crate::{admission::Rejection, child::ExitStatus, spawn::SpawnError, util::random_id};

/// Largest number of rows or columns of a window.
const MAX_SIDE_CELLS: u16 = 4096;
/// Longest client id, in bytes.
const MAX_CLIENT_ID_BYTES: usize = 64;

/// Identifies a terminal within the workspace. Twelve random characters of lower-case base32.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TerminalId(Arc<str>);

/// Identifier that a client chose for itself and uses across reconnects.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClientId(Arc<str>);

impl TerminalId {
    pub(crate) fn random() -> Self {
        Self(random_id().into())
    }

    /// Wraps an id from the wire without validation; an unknown id leads to `NotFound`.
    pub fn new(id: &str) -> Self {
        Self(id.into())
    }

    /// Returns the id as sent on the wire.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for TerminalId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl ClientId {
    /// Returns an error unless the id has 1 to 64 bytes.
    pub fn new(id: impl AsRef<str>) -> Result<Self, TerminalError> {
        let id = id.as_ref();
        if id.is_empty() || id.len() > MAX_CLIENT_ID_BYTES {
            return Err(TerminalError::BadField { field: "client_id", allowed: "1 to 64 bytes long" });
        }
        Ok(Self(id.into()))
    }
}

/// Window size in character cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Height in cells, 1 to 4096.
    pub rows: u16,
    /// Width in cells, 1 to 4096.
    pub cols: u16,
}

/// Point in the output at which a viewer starts to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ViewerStart {
    /// Resumes after the last byte that the client has.
    Position {
        /// Epoch of the log that the client read from. If it is not the current epoch, the viewer
        /// starts with the oldest byte in the log.
        epoch: u64,
        /// Offset of the next byte to send.
        offset: u64,
    },
    /// Starts with a snapshot of the screen, followed by new output.
    Screen,
    /// Starts with the oldest byte in the log.
    Oldest,
    /// Starts with the next byte that the program prints.
    Now,
}

/// How a client reads one terminal, by an attachment or a watch, and whether it may type.
#[derive(Debug, Clone)]
pub struct ViewerOptions {
    pub terminal: TerminalId,
    /// Point in the output at which the stream starts.
    pub from: ViewerStart,
    /// Identifies the client's input stream; `None` if it never types.
    pub client: Option<ClientId>,
    /// Client's window size; a client without one never owns the terminal's size.
    pub size: Option<WindowSize>,
    /// Output bytes that may be unacknowledged; 0 means unlimited.
    pub credit: u64,
    /// The PTY is not read while this viewer is about to miss output, for at most 60 s without
    /// progress. Not allowed for a watch of several terminals.
    pub lossless: bool,
    /// The client is not a writer. All input, resizes and signals of an attachment are rejected.
    pub read_only: bool,
}

/// Exit of a terminal, sent after its last output byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalExit {
    /// Exit status of the session leader.
    pub status: ExitStatus,
    /// Offset after the last output byte.
    pub final_offset: u64,
    pub ended_at: SystemTime,
    /// True if a background job still held the PTY open when the terminal ended.
    pub held_by_background: bool,
}

/// One message of input from a client.
#[derive(Debug, Clone, Copy)]
pub struct TerminalInput<'a> {
    /// Epoch of the log that the client sees. Input for any other than the current epoch is
    /// rejected.
    pub epoch: u64,
    /// Offset of the first byte of `data` in the client's own input stream.
    pub offset: u64,
    /// 1 byte to 1 MiB.
    pub data: &'a [u8],
    pub kind: InputKind,
}

/// Origin of input, which decides whether it counts as activity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputKind {
    /// Keystrokes or a paste. Counts as activity.
    User,
    /// Automatic reply of a terminal emulator to a query. Does not count as activity.
    Reply {
        /// Offset up to which the emulator had processed the output when it replied.
        at: u64,
    },
}

/// Name, command line and size of a terminal, as they are saved in its journal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TerminalSpec {
    pub(crate) name: String,
    /// Id with which a retried create request finds this terminal; may be empty.
    pub(crate) request_id: String,
    /// For display, truncated to 4 KiB.
    pub(crate) argv: Vec<String>,
    /// Only present for an interactive shell.
    #[serde(rename = "again")]
    pub(crate) restart: Option<RestartSpec>,
    /// Size at the start of the program.
    #[serde(flatten)]
    pub(crate) size: WindowSize,
}

/// Command and environment that start an interactive shell again, as the client sent them. An empty
/// `argv` means the shell of the workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RestartSpec {
    pub(crate) argv: Vec<String>,
    pub(crate) env: HashMap<String, String>,
}

/// Description of a terminal at one moment.
#[derive(Debug, Clone)]
pub struct TerminalInfo {
    pub id: TerminalId,
    /// Display name; need not be unique.
    pub name: String,
    pub argv: Vec<String>,
    pub size: WindowSize,
    /// Epoch of the log.
    pub epoch: u64,
    /// Offset of the oldest byte in the log.
    pub oldest: u64,
    /// Offset that the next output byte will have.
    pub next: u64,
    /// Title that the program last set; empty if it set none.
    pub title: String,
    /// Directory that the shell reported by OSC 7, otherwise the leader's working directory.
    pub cwd: String,
    /// Command in the foreground. Empty while the shell waits at its prompt, and after the terminal
    /// has ended.
    pub foreground: String,
    pub created: SystemTime,
    /// Session leader; `None` if it ended before this agent started.
    pub pid: Option<Pid>,
    /// `Some` once the terminal has ended.
    pub exit: Option<TerminalExit>,
    /// Capacity of the log, in bytes.
    pub byte_log_bytes: usize,
    /// Number of attached viewers.
    pub viewers: usize,
}

/// Processes that a signal is sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignalTarget {
    /// Foreground process group of the PTY.
    Foreground,
    /// Every process of the session.
    Session,
}

impl WindowSize {
    /// Returns an error if either side is outside 1 to 4096.
    pub fn new(rows: u32, cols: u32) -> Result<Self, TerminalError> {
        let side = |n: u32| u16::try_from(n).ok().filter(|n| (1..=MAX_SIDE_CELLS).contains(n));
        match (side(rows), side(cols)) {
            (Some(rows), Some(cols)) => Ok(Self { rows, cols }),
            _ => Err(TerminalError::BadField { field: "size", allowed: "1 to 4096 rows and columns" }),
        }
    }
}

impl Default for WindowSize {
    fn default() -> Self {
        Self { rows: 24, cols: 80 }
    }
}

/// One event of a terminal.
#[derive(Debug, Clone)]
pub struct Frame {
    pub terminal: TerminalId,
    /// Epoch of the log that `offset` refers to.
    pub epoch: u64,
    /// Output offset at which the event happened.
    pub offset: u64,
    pub kind: FrameKind,
}

/// Payload of a frame.
#[derive(Debug, Clone)]
pub enum FrameKind {
    /// First frame of a stream.
    Started {
        /// Offset of the oldest byte in the log.
        oldest: u64,
        /// Offset of the end of the log.
        next: u64,
        size: WindowSize,
        /// Offset expected next in this client's input stream.
        input_offset: u64,
        /// Queries in output before this offset were replayed, so replies to them are dropped.
        live_from: u64,
    },
    Data(Bytes),
    /// Bytes `[from, to)` are no longer available to this reader.
    Gap {
        /// Offset of the first missing byte.
        from: u64,
        /// Offset at which the output continues.
        to: u64,
    },
    /// Content of the screen after all bytes before `offset`.
    Screen(Arc<ScreenSnapshot>),
    /// Title that the program set.
    Title(String),
    /// New working directory of the shell.
    Cwd(String),
    /// New foreground command; empty when the shell is back at its prompt.
    Foreground(String),
    /// New size of the terminal.
    Resized(WindowSize),
    /// Last frame of a stream.
    Exit(TerminalExit),
    /// Sent after 15 s without another frame.
    KeepAlive,
}

/// Content of a screen at one offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScreenSnapshot {
    /// The snapshot shows the screen after all bytes before this offset.
    pub offset: u64,
    pub size: WindowSize,
    /// Bytes that paint the screen on a freshly reset terminal.
    pub contents: Bytes,
    /// Row and column, from 0.
    pub cursor: (u16, u16),
    pub cursor_hidden: bool,
    /// True while a full-screen program is shown.
    pub alternate_screen: bool,
    pub bracketed_paste: bool,
    /// True if cursor keys send application codes.
    pub application_cursor: bool,
}

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

/// Reason why a PTY could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum PtyOpenError {
    /// All PTYs of the system are in use, or `/dev/ptmx` does not exist.
    #[error("cannot open a PTY: all are in use, or /dev/ptmx is missing; close a terminal and retry")]
    NoPty,
    /// The process or the system has no file descriptor left.
    #[error("cannot open a PTY: no file descriptor is left; close a terminal and retry")]
    NoFileDescriptors,
    /// Any other error of the system.
    #[error("cannot open a PTY")]
    Io(#[source] io::Error),
}
