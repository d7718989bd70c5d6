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
mod counters;
mod error;
mod escape;
mod facts;
mod input;
mod job;
mod pictures;
mod pty;
mod registry;
mod screen;
mod session;
mod state;
mod task;
mod viewer;
mod watch;
mod writers;

#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::{Instant, SystemTime},
};

use rustix::{
    io::Errno,
    process::{Pid, Signal, kill_process, kill_process_group},
};
use tokio::sync::Notify;

pub use self::{
    attachment::{Attach, Attachment, AttachmentEvent, Refusal, Writer},
    error::TerminalError,
    input::QUEUE_BYTES as INPUT_QUEUE_BYTES,
    pty::OpenError,
    registry::{Create, ForegroundJob, Terminals},
    screen::Shot,
    session::DEFAULT_GRACE,
    viewer::{Frame, FrameKind},
    watch::{Watch, WatchEvent, WatchFrom, WatchManner},
};
use self::{state::State, writers::Outcome};
use crate::{
    child::{Ended, signals},
    intent::{Intent, Intents},
};

/// Longest client id, in bytes.
const CLIENT_ID_BYTES: usize = 64;
/// Largest window side, in cells.
const SIDE_CELLS: u16 = 4096;
/// Largest piece of input, in bytes.
pub const INPUT_BYTES: usize = 1024 * 1024;

/// Twelve characters, unique within the workspace for ever.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TerminalId(Arc<str>);

/// The name a client gave itself, kept over its reconnects.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClientId(Arc<str>);

/// A window in character cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// 1 to 4096.
    pub rows: u16,
    /// 1 to 4096.
    pub cols: u16,
}

/// Where a viewer begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
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
pub struct Exit {
    /// What its leader ended with.
    pub how: Ended,
    /// Offset after the last byte.
    pub final_offset: u64,
    /// When.
    pub at: SystemTime,
    /// A background job still held the PTY.
    pub held_by_background: bool,
}

/// One piece of input.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
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
pub struct Info {
    /// Which.
    pub id: TerminalId,
    /// For people.
    pub name: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Now.
    pub size: Size,
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
    /// The session's leader.
    pub pid: Pid,
    /// Once it has ended.
    pub exit: Option<Exit>,
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

/// One terminal, shared by its task, its viewers and its writers.
pub(crate) struct Terminal {
    id: TerminalId,
    name: String,
    argv: Vec<String>,
    /// So that a repeated Create finds it; may be empty.
    request_id: String,
    created: SystemTime,
    pid: Pid,
    intents: Arc<Intents>,
    state: Mutex<State>,
    /// Wakes the task.
    wake: Notify,
    /// Ticks for those who wait until their input is written.
    input_moved: Notify,
    /// Ticks when it has ended.
    has_ended: Notify,
}

impl TerminalId {
    fn random() -> Self {
        const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        Self((0..12).map(|_| char::from(ALPHABET[fastrand::usize(..32)])).collect::<String>().into())
    }

    /// As on the wire. Any text may be asked for; a wrong one is not found.
    pub fn new(id: &str) -> Self {
        Self(id.into())
    }

    /// As on the wire.
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
    /// 1 to 64 bytes.
    pub fn new(id: impl AsRef<str>) -> Result<Self, TerminalError> {
        let id = id.as_ref();
        if id.is_empty() || id.len() > CLIENT_ID_BYTES {
            return Err(TerminalError::BadField { field: "client_id", allowed: "1 to 64 characters" });
        }
        Ok(Self(id.into()))
    }
}

impl Size {
    /// A size within the allowed range.
    pub fn new(rows: u32, cols: u32) -> Result<Self, TerminalError> {
        let side = |n: u32| u16::try_from(n).ok().filter(|n| (1..=SIDE_CELLS).contains(n));
        match (side(rows), side(cols)) {
            (Some(rows), Some(cols)) => Ok(Self { rows, cols }),
            _ => Err(TerminalError::BadField { field: "size", allowed: "1 to 4096 rows and columns" }),
        }
    }
}

impl Default for Size {
    fn default() -> Self {
        Self { rows: 24, cols: 80 }
    }
}

impl Terminal {
    /// A short lock: nobody holds it across an await.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn info(&self) -> Info {
        let state = self.state();
        let foreground =
            if state.exit.is_some() { String::new() } else { self.job(&state).unwrap_or_default() };
        Info {
            id: self.id.clone(),
            name: self.name.clone(),
            argv: self.argv.clone(),
            size: state.size.value,
            epoch: state.log.epoch(),
            oldest: state.log.oldest(),
            next: state.log.next(),
            title: state.title.value.clone(),
            cwd: self.folder(&state).unwrap_or_else(|| state.cwd.value.clone()),
            foreground,
            created: self.created,
            pid: self.pid,
            exit: state.exit,
            ring_bytes: state.log.max_bytes(),
            viewers: state.viewers.len(),
        }
    }

    /// The foreground job's command; `None` while the leader itself waits.
    fn job(&self, state: &State) -> Option<String> {
        let group = state.pty.as_ref()?.foreground()?;
        if group == self.pid { None } else { job::command(group) }
    }

    /// The leader's folder, unless the shell reports it itself.
    fn folder(&self, state: &State) -> Option<String> {
        if state.cwd_reported || state.exit.is_some() {
            return None;
        }
        job::folder(self.pid).map(|path| path.to_string_lossy().into_owned())
    }

    /// Takes input, writes at once what the PTY takes, and says which offset this client's acknowledgement must reach.
    fn write(&self, client: &ClientId, input: Input<'_>) -> Result<u64, TerminalError> {
        if input.data.is_empty() || input.data.len() > INPUT_BYTES {
            return Err(TerminalError::BadField { field: "input.data", allowed: "1 byte to 1 MiB" });
        }
        let mut state = self.state();
        let state = &mut *state;
        if input.epoch != state.log.epoch() {
            return Err(TerminalError::StaleEpoch { epoch: state.log.epoch() });
        }
        if let Some(exit) = state.exit {
            return Err(TerminalError::Ended(exit));
        }
        let now = Instant::now();
        let end = input.offset.saturating_add(input.data.len() as u64);
        let verdict = state.inputs.judge(client, input.epoch, input.offset, input.data.len(), now);
        let input::Verdict::New(skip) = verdict.map_err(|refused| self.refused(state, refused))? else {
            return Ok(end);
        };
        let new = &input.data[skip..];
        match input.kind {
            InputKind::User => {
                self.intents.admit(Intent::Keystroke).map_err(|_| TerminalError::Preparing)?;
                state.inputs.take(client, new, now);
                let outcome = state.writers.typed(client);
                self.apply(state, outcome)?;
            }
            InputKind::Reply { at } if state.writers.wants_reply(client, at) => {
                state.inputs.take(client, new, now)
            }
            InputKind::Reply { .. } => state.inputs.drop_in_turn(client, new.len(), now),
        }
        state.flush_input();
        self.input_moved.notify_waiters();
        if !state.inputs.front().is_empty() {
            self.wake.notify_one();
        }
        state.note_activity();
        self.wake_if_facts_are_due(state);
        Ok(end)
    }

    fn refused(&self, state: &State, refused: input::Refused) -> TerminalError {
        match refused {
            input::Refused::StaleEpoch => TerminalError::StaleEpoch { epoch: state.log.epoch() },
            input::Refused::Hole { expected } => TerminalError::InputHole { expected },
            input::Refused::Forgotten { expected } => TerminalError::InputForgotten { expected },
            input::Refused::Full { expected } => TerminalError::InputFull { expected },
            input::Refused::TooManyClients => {
                TerminalError::TooManyStreams { what: "clients", limit: input::CLIENTS }
            }
        }
    }

    /// Waits until this client's input before `end` is in the PTY.
    async fn written(&self, client: &ClientId, end: u64) -> Result<u64, TerminalError> {
        loop {
            let moved = self.input_moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            {
                let state = self.state();
                if state.inputs.written(client) >= end {
                    return Ok(state.inputs.expected(client));
                }
                if let Some(exit) = state.exit {
                    return Err(TerminalError::Ended(exit));
                }
            }
            moved.await;
        }
    }

    /// A client's window; answers with the terminal's size and whether the client owns it.
    fn resize(&self, client: &ClientId, size: Size, take: bool) -> Result<(Size, bool), TerminalError> {
        let mut state = self.state();
        if let Some(exit) = state.exit {
            return Err(TerminalError::Ended(exit));
        }
        let outcome = state.writers.resize(client, size, take);
        self.apply(&mut state, outcome)?;
        Ok((state.size.value, state.writers.is_owner(client)))
    }

    fn apply(&self, state: &mut State, outcome: Outcome) -> Result<(), TerminalError> {
        let Outcome::Apply(size) = outcome else { return Ok(()) };
        if size == state.size.value {
            return Ok(());
        }
        if let Some(pty) = &state.pty {
            pty.resize(size).map_err(|source| TerminalError::Io { operation: "resize the PTY", source })?;
            state.set_size(size);
            state.wake_viewers();
            self.wake.notify_one();
        }
        Ok(())
    }

    fn signal(&self, signal: &str, target: SignalTarget) -> Result<(), TerminalError> {
        let signal = signals::by_name(signal)
            .ok_or(TerminalError::BadField { field: "signal", allowed: "a name such as INT or TERM" })?;
        let (group, leader_gone, exit) = {
            let state = self.state();
            (state.pty.as_ref().and_then(|pty| pty.foreground()), state.leader_gone, state.exit)
        };
        let sent = match (target, exit) {
            (SignalTarget::Foreground, Some(exit)) => return Err(TerminalError::Ended(exit)),
            // It ended while background jobs held it, and they may live on.
            (SignalTarget::Session, Some(exit)) if job::session(self.pid, leader_gone).is_empty() => {
                return Err(TerminalError::Ended(exit));
            }
            // Without its leader a session has no foreground: whoever is left is meant. The leader's number may be a stranger's by now.
            (SignalTarget::Foreground, None) if !leader_gone => {
                kill_process_group(group.unwrap_or(self.pid), signal)
            }
            _ => {
                self.signal_session(signal);
                Ok(())
            }
        };
        match sent {
            // A group that is gone in the meantime had no use for the signal.
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => {
                Err(TerminalError::Io { operation: "signal the foreground job", source: errno.into() })
            }
        }
    }

    fn signal_session(&self, signal: Signal) {
        let gone = self.state().leader_gone;
        for pid in job::session(self.pid, gone) {
            // It may have ended since.
            let _ = kill_process(pid, signal);
        }
    }

    /// Facts that are polled (folder, foreground job) are looked at soon after something happened, if somebody watches.
    fn wake_if_facts_are_due(&self, state: &State) {
        if !state.viewers.is_empty() && !state.facts_scheduled {
            self.wake.notify_one();
        }
    }
}

impl std::fmt::Debug for Terminal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Terminal").field("id", &self.id).field("pid", &self.pid).finish_non_exhaustive()
    }
}
