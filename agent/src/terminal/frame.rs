//! Frames: the ordered events that a viewer receives.

use std::sync::Arc;

use bytes::Bytes;

use super::{ScreenSnapshot, TerminalExit, TerminalId, WindowSize};

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
