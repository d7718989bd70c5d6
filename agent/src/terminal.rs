//! Terminals: PTYs with a byte log that outlive their viewers.
//!
//! ```text
//!  writers ──▶ input ──▶ ┌──────┐ ──▶ byte log ──▶ viewers, each with its own cursor
//!                        │ task │        │
//!            program ◀──▶│ PTY  │        └─▶ screen model, which may lag
//!                        └──────┘
//! ```
//!
//! One task per terminal reads its PTY and writes queued input (`task`). Viewers and writers share
//! `state` with the task under a lock that is held briefly, and wake the task through a `Notify`.
//! The pure modules (`input_sequencer`, `writers`, `escape`, `screen`) do no IO and read no clock.
//! No terminal module uses protobuf types.

mod attachment;
mod builder;
mod counters;
mod create;
mod error;
mod escape;
mod foreground_poller;
mod frame;
mod ids;
mod input_queue;
mod input_sequencer;
mod journal;
mod panic_guard;
mod persistence;
mod procfs;
mod pty;
mod registry;
mod restore;
mod screen;
mod screen_feeder;
mod sent_metadata;
mod session;
mod shared;
mod shell;
mod state;
mod streams;
mod task;
mod viewer;
mod watch;
mod writers;

#[cfg(test)]
mod tests;

use std::time::SystemTime;

use rustix::process::Pid;

use self::shared::Terminal;
pub use self::{
    attachment::{AttachOptions, Attachment, AttachmentEvent, AttachmentWriter, InputRejection},
    create::CreateTerminal,
    error::TerminalError,
    frame::{Frame, FrameKind},
    ids::{ClientId, TerminalId},
    input_queue::InputQueue,
    input_sequencer::MAX_QUEUE_BYTES as INPUT_QUEUE_BYTES,
    pty::PtyOpenError,
    registry::{ForegroundJob, Terminals},
    screen::ScreenSnapshot,
    session::DEFAULT_GRACE,
    watch::{TerminalWatch, WatchEvent, WatchOptions, WatchTarget},
};
use crate::child::ExitStatus;

/// Largest number of rows or columns of a window.
const MAX_SIDE_CELLS: u16 = 4096;
/// Largest accepted input message, in bytes.
pub const MAX_INPUT_BYTES: usize = 1024 * 1024;

/// Window size in character cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
