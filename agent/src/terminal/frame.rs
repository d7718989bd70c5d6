//! Frame: what a viewer is told, one thing at a time and in order.

use std::sync::Arc;

use bytes::Bytes;

use super::{ScreenSnapshot, TerminalExit, TerminalId, WindowSize};

/// One thing that happened in a terminal.
#[derive(Debug, Clone)]
pub struct Frame {
    /// Where.
    pub terminal: TerminalId,
    /// Of the position.
    pub epoch: u64,
    /// The position at which it happened.
    pub offset: u64,
    /// What.
    pub kind: FrameKind,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum FrameKind {
    /// The stream begins.
    Started {
        /// The oldest byte that is held.
        oldest: u64,
        /// The end of the log.
        next: u64,
        /// Now.
        size: WindowSize,
        /// What is expected next of this client's input.
        input_offset: u64,
        /// Queries before it were replayed.
        live_from: u64,
    },
    /// Output.
    Data(Bytes),
    /// Bytes `[from, to)` that this reader can no longer have.
    Gap {
        /// The first.
        from: u64,
        /// Where it goes on.
        to: u64,
    },
    /// What the screen shows.
    Screen(Arc<ScreenSnapshot>),
    /// The program set it.
    Title(String),
    /// The shell's folder changed.
    Cwd(String),
    /// Another job came to the foreground; empty: the leader waits.
    Foreground(String),
    /// The terminal has another size.
    Resized(WindowSize),
    /// The last frame.
    Exit(TerminalExit),
    /// Nothing has happened for a while.
    KeepAlive,
}
