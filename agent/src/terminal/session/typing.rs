//! Input and window sizes: from a client's message to the PTY.

use std::{io::ErrorKind, time::Instant};

use super::{Terminal, TerminalState};
use crate::{
    admission::{AdmitError, Attempt, Intent},
    terminal::{
        input::{CheckedInput, InputPosition},
        types::{ClientId, InputKind, TerminalError, TerminalInput, WindowSize},
    },
};

/// Largest accepted input message, in bytes.
const MAX_INPUT_BYTES: usize = 1024 * 1024;
/// Bytes after which the task stops writing to the PTY until its next round. A large paste thus
/// delays nothing else.
const WRITE_BYTES: usize = 64 * 1024;
/// Limit on resizes that wait for the screen model. Beyond it the oldest is dropped.
const MAX_PENDING_RESIZES: usize = 64;

impl Terminal {
    /// Accepts input and writes what the PTY takes now. Returns the offset that the client's
    /// acknowledgement must reach. If the admission gate holds the input, nothing was accepted.
    pub(crate) fn write(
        &self,
        client: &ClientId,
        input: TerminalInput<'_>,
    ) -> Result<u64, Attempt<TerminalError>> {
        if input.data.is_empty() || input.data.len() > MAX_INPUT_BYTES {
            return Err(
                TerminalError::BadField { field: "input.data", allowed: "1 byte to 1 MiB long" }.into()
            );
        }
        let mut state = self.state();
        let state = &mut *state;
        state.inputs.check_epoch(input.epoch)?;
        if let Some(exit) = state.lifecycle.exited() {
            return Err(TerminalError::TerminalEnded(exit).into());
        }
        let now = Instant::now();
        let end = input.offset.saturating_add(input.data.len() as u64);
        let checked = state.inputs.check(client, input.offset, input.data.len(), now);
        if matches!(checked, Err(TerminalError::InputGap { .. })) && self.gate.is_holding() {
            // The missing bytes may be held at the admission gate, and must be written first.
            self.try_admit(input.data.len())?;
        }
        let CheckedInput::New(skip) = checked? else { return Ok(end) };
        let new = &input.data[skip..];
        match input.kind {
            InputKind::User => {
                self.try_admit(new.len())?;
                state.inputs.accept(client, new, now);
                let size = state.writers.record_input(client);
                self.apply_size(state, size)?;
            }
            InputKind::Reply { at } if state.writers.accepts_reply(client, at) => {
                state.inputs.accept(client, new, now)
            }
            InputKind::Reply { .. } => state.inputs.discard_in_order(client, new.len(), now),
        }
        state.flush_input();
        self.progress.notify_waiters();
        if !state.inputs.front().is_empty() {
            self.wake.notify_one();
        }
        state.changed_since_poll = true;
        // A terminal without viewers is not polled for its directory and foreground job.
        if !state.viewers.is_empty() && state.poll_at.is_none() {
            self.wake.notify_one();
        }
        Ok(end)
    }

    /// Waits until the client's input before `end` is written. Returns the next expected offset.
    /// Cancel-safe.
    pub(crate) async fn wait_written(&self, client: &ClientId, end: u64) -> Result<u64, TerminalError> {
        self.wait_until(|state| {
            let position = state.inputs.position(client);
            if position.written >= end {
                return Some(Ok(position.expected));
            }
            state.lifecycle.exited().map(|exit| Err(TerminalError::TerminalEnded(exit)))
        })
        .await
    }

    /// Returns the client's position in its input stream.
    pub(crate) fn input_position(&self, client: &ClientId) -> InputPosition {
        self.state().inputs.position(client)
    }

    /// Asks the admission gate to admit this many bytes of keystrokes.
    pub(crate) fn try_admit(&self, bytes: usize) -> Result<(), AdmitError> {
        self.gate.try_admit(Intent::Keystroke, bytes)
    }

    /// Sets the client's window size. `take_ownership` makes the client the owner of the terminal's
    /// size. Returns the terminal's size and whether the client owns it.
    pub(crate) fn resize(
        &self,
        client: &ClientId,
        size: WindowSize,
        take_ownership: bool,
    ) -> Result<(WindowSize, bool), TerminalError> {
        let mut state = self.state();
        if let Some(exit) = state.lifecycle.exited() {
            return Err(TerminalError::TerminalEnded(exit));
        }
        let size = state.writers.resize(client, size, take_ownership);
        self.apply_size(&mut state, size)?;
        Ok((state.size.value, state.writers.is_owner(client)))
    }

    /// Applies the size that the writers have determined, if they changed it.
    pub(super) fn apply_size(
        &self,
        state: &mut TerminalState,
        size: Option<WindowSize>,
    ) -> Result<(), TerminalError> {
        let (Some(size), Some(pty)) = (size, state.lifecycle.pty()) else { return Ok(()) };
        if size == state.size.value {
            return Ok(());
        }
        pty.resize(size).map_err(|source| TerminalError::Io { operation: "resize the PTY", source })?;
        let at = state.log.next();
        state.size.set(size, at);
        // The task hands the resize to the screen model.
        state.resizes.push_back((at, size));
        if state.resizes.len() > MAX_PENDING_RESIZES {
            state.resizes.pop_front();
        }
        state.wake_viewers();
        self.wake.notify_one();
        Ok(())
    }
}

impl TerminalState {
    /// Writes queued input until the PTY is full or about 64 KiB were written. Returns true if
    /// anything was written.
    pub(super) fn flush_input(&mut self) -> bool {
        let Some(pty) = self.lifecycle.pty() else { return false };
        let mut wrote = 0;
        self.write_failed = false;
        while wrote < WRITE_BYTES {
            let front = self.inputs.front();
            if front.is_empty() {
                break;
            }
            match pty.write(front) {
                Ok(n) if n > 0 => {
                    self.inputs.mark_written(n);
                    wrote += n;
                }
                // The PTY is full; writing continues when the program reads.
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // No process has the slave open; the next event retries.
                Ok(_) | Err(_) => {
                    self.write_failed = true;
                    break;
                }
            }
        }
        if wrote > 0 {
            self.wake_viewers();
        }
        wrote > 0
    }
}
