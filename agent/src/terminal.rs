//! Terminals: PTYs with a byte log that outlive their viewers.
//!
//! ```text
//!  writers ──▶ input ──▶ ┌──────┐ ──▶ byte log ──▶ viewers, each with its own cursor
//!                        │ task │        │
//!            program ◀──▶│ PTY  │        └─▶ screen model, fed behind the stream
//!                        └──────┘
//! ```
//!
//! One task per terminal owns its PTY (`task`); everybody else shares `state` under a short lock and is woken by it. The pure parts
//! (`input`, `writers`, `escape`, `screen`) know neither. Must not know the wire.

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

/// Largest window side, in cells.
const MAX_SIDE_CELLS: u16 = 4096;
/// Largest piece of input, in bytes.
pub const MAX_INPUT_BYTES: usize = 1024 * 1024;

/// A window in character cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowSize {
    /// 1 to 4096.
    pub rows: u16,
    /// 1 to 4096.
    pub cols: u16,
}

/// Where a viewer begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ViewerStart {
    /// Behind the last byte it has.
    Position {
        /// The life of the log it knows.
        epoch: u64,
        /// Of the next byte.
        offset: u64,
    },
    /// With a picture of the screen.
    Screen,
    /// With everything that is held.
    Oldest,
    /// With what comes.
    Now,
}

/// How a terminal ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalExit {
    /// What its leader ended with.
    pub status: ExitStatus,
    /// Offset after the last byte.
    pub final_offset: u64,
    /// When.
    pub ended_at: SystemTime,
    /// A background job still held the PTY.
    pub held_by_background: bool,
}

/// One piece of input.
#[derive(Debug, Clone, Copy)]
pub struct TerminalInput<'a> {
    /// The life of the log it is meant for.
    pub epoch: u64,
    /// Of its first byte, in the client's stream.
    pub offset: u64,
    /// 1 byte to 1 MiB.
    pub data: &'a [u8],
    /// Who made it.
    pub kind: InputKind,
}

/// Who made a piece of input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputKind {
    /// Somebody typed: intent.
    User,
    /// An emulator answered by itself.
    Reply {
        /// Up to which output it had been fed.
        at: u64,
    },
}

/// What is known of a terminal.
#[derive(Debug, Clone)]
pub struct TerminalInfo {
    /// Which.
    pub id: TerminalId,
    /// For people.
    pub name: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Now.
    pub size: WindowSize,
    /// Of its log.
    pub epoch: u64,
    /// Of its log.
    pub oldest: u64,
    /// Of its log.
    pub next: u64,
    /// As the program set it; empty if never.
    pub title: String,
    /// As the shell reported it, else the leader's.
    pub cwd: String,
    /// Empty while the leader itself waits.
    pub foreground: String,
    /// When.
    pub created: SystemTime,
    /// The session's leader; `None` if that was another agent's.
    pub pid: Option<Pid>,
    /// Once it has ended.
    pub exit: Option<TerminalExit>,
    /// Output kept at most.
    pub ring_bytes: usize,
    /// How many watch it.
    pub viewers: usize,
}

/// Whom a signal is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignalTarget {
    /// The foreground process group.
    Foreground,
    /// Every process of the session.
    Session,
}

impl WindowSize {
    /// A size within the allowed range.
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
