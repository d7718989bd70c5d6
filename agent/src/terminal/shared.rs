//! Terminal state shared by its task, viewers and writers, and the operations on it.
//!
//! Every method holds the state's lock briefly, and wakes the task if there is work for it.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::{Instant, SystemTime},
};

use rustix::{
    io::Errno,
    process::{Pid, Signal, kill_process, kill_process_group},
};
use tokio::sync::Notify;

use super::{
    ClientId, InputKind, MAX_INPUT_BYTES, SignalTarget, TerminalError, TerminalId, TerminalInfo,
    TerminalInput, WindowSize, input_sequencer, journal::RestartSpec, procfs, state::TerminalState,
    writers::SizeChange,
};
use crate::{
    admission::{AdmissionGate, Attempt, Intent},
    child::signals,
};

/// One terminal, shared by its task, viewers and writers.
pub(crate) struct Terminal {
    pub(super) id: TerminalId,
    pub(super) name: String,
    pub(super) argv: Vec<String>,
    /// Id with which a retried create request finds this terminal; may be empty.
    pub(super) request_id: String,
    pub(super) created: SystemTime,
    /// Session leader; `None` if it ended before this agent started.
    pub(super) pid: Option<Pid>,
    /// Command and environment that restart the program. `Some` only for an interactive shell.
    pub(super) restart: Option<RestartSpec>,
    pub(super) gate: Arc<AdmissionGate>,
    pub(super) state: Mutex<TerminalState>,
    pub(super) wake: Notify,
    /// Notified when queued input was written.
    pub(super) input_moved: Notify,
    /// Notified when the terminal has ended.
    pub(super) has_ended: Notify,
}

impl Terminal {
    /// Locks the state. The guard is never held across an await.
    pub(super) fn state(&self) -> MutexGuard<'_, TerminalState> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub(super) fn info(&self) -> TerminalInfo {
        let state = self.state();
        let foreground = if state.exit.is_some() {
            String::new()
        } else {
            self.foreground_command(&state).unwrap_or_default()
        };
        TerminalInfo {
            id: self.id.clone(),
            name: self.name.clone(),
            argv: self.argv.clone(),
            size: state.size.value,
            epoch: state.log.epoch(),
            oldest: state.log.oldest(),
            next: state.log.next(),
            title: state.title.value.clone(),
            cwd: self.polled_cwd(&state).unwrap_or_else(|| state.cwd.value.clone()),
            foreground,
            created: self.created,
            pid: self.pid,
            exit: state.exit,
            byte_log_bytes: state.log.max_bytes(),
            viewers: state.viewers.len(),
        }
    }

    /// Returns the command in the foreground. `None` while a shell waits at its prompt, and after
    /// the end. If the terminal was created for a program that is not a shell, that program is the
    /// foreground command.
    pub(super) fn foreground_command(&self, state: &TerminalState) -> Option<String> {
        let group = state.pty.as_ref()?.foreground()?;
        let is_waiting_shell = Some(group) == self.pid && self.restart.is_some();
        if is_waiting_shell { None } else { procfs::command_name(group) }
    }

    /// Returns the leader's working directory, unless the shell reports it by OSC 7 or the terminal
    /// has ended.
    pub(super) fn polled_cwd(&self, state: &TerminalState) -> Option<String> {
        if state.cwd_reported || state.exit.is_some() {
            return None;
        }
        procfs::working_directory(self.pid?).map(|path| path.to_string_lossy().into_owned())
    }

    /// Accepts input and writes what the PTY takes now. Returns the offset that the client's
    /// acknowledgement must reach. If the admission gate holds the input, nothing was accepted.
    pub(super) fn write(
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
        if input.epoch != state.log.epoch() {
            return Err(TerminalError::StaleEpoch { epoch: state.log.epoch() }.into());
        }
        if let Some(exit) = state.exit {
            return Err(TerminalError::TerminalEnded(exit).into());
        }
        let now = Instant::now();
        let end = input.offset.saturating_add(input.data.len() as u64);
        let checked = state.inputs.check(client, input.epoch, input.offset, input.data.len(), now);
        if matches!(checked, Err(input_sequencer::SequenceError::InputGap { .. })) && self.gate.is_holding() {
            // The missing bytes may be held at the admission gate, and must be written first.
            self.gate.try_admit(Intent::Keystroke, input.data.len())?;
        }
        let input_sequencer::CheckedInput::New(skip) =
            checked.map_err(|error| self.input_error(state, error))?
        else {
            return Ok(end);
        };
        let new = &input.data[skip..];
        match input.kind {
            InputKind::User => {
                self.gate.try_admit(Intent::Keystroke, new.len())?;
                state.inputs.accept(client, new, now);
                let change = state.writers.record_input(client);
                self.apply_size(state, change)?;
            }
            InputKind::Reply { at } if state.writers.accepts_reply(client, at) => {
                state.inputs.accept(client, new, now)
            }
            InputKind::Reply { .. } => state.inputs.discard_in_order(client, new.len(), now),
        }
        state.flush_input();
        self.input_moved.notify_waiters();
        if !state.inputs.front().is_empty() {
            self.wake.notify_one();
        }
        state.mark_changed();
        self.wake_for_poll(state);
        Ok(end)
    }

    fn input_error(&self, state: &TerminalState, error: input_sequencer::SequenceError) -> TerminalError {
        match error {
            input_sequencer::SequenceError::StaleEpoch => {
                TerminalError::StaleEpoch { epoch: state.log.epoch() }
            }
            input_sequencer::SequenceError::InputGap { expected } => TerminalError::InputGap { expected },
            input_sequencer::SequenceError::ClientEvicted { expected } => {
                TerminalError::ClientEvicted { expected }
            }
            input_sequencer::SequenceError::Full { expected } => TerminalError::InputFull { expected },
            input_sequencer::SequenceError::TooManyClients => TerminalError::TooManyStreams {
                what: "clients of this terminal",
                limit: input_sequencer::MAX_CLIENTS,
            },
        }
    }

    /// Waits until the client's input before `end` is written. Returns the next expected offset.
    /// Cancel-safe.
    pub(super) async fn wait_written(&self, client: &ClientId, end: u64) -> Result<u64, TerminalError> {
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
                    return Err(TerminalError::TerminalEnded(exit));
                }
            }
            moved.await;
        }
    }

    /// Sets the client's window size. `take` makes the client the owner of the terminal's size.
    /// Returns the terminal's size and whether the client owns it.
    pub(super) fn resize(
        &self,
        client: &ClientId,
        size: WindowSize,
        take_ownership: bool,
    ) -> Result<(WindowSize, bool), TerminalError> {
        let mut state = self.state();
        if let Some(exit) = state.exit {
            return Err(TerminalError::TerminalEnded(exit));
        }
        let change = state.writers.resize(client, size, take_ownership);
        self.apply_size(&mut state, change)?;
        Ok((state.size.value, state.writers.is_owner(client)))
    }

    pub(super) fn apply_size(
        &self,
        state: &mut TerminalState,
        change: SizeChange,
    ) -> Result<(), TerminalError> {
        let SizeChange::Apply(size) = change else { return Ok(()) };
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

    pub(super) fn signal(&self, signal: &str, target: SignalTarget) -> Result<(), TerminalError> {
        let signal = signals::by_name(signal)
            .ok_or(TerminalError::BadField { field: "signal", allowed: "a name such as INT or TERM" })?;
        let (group, leader_gone, exit) = {
            let state = self.state();
            (state.pty.as_ref().and_then(|pty| pty.foreground()), state.leader_gone, state.exit)
        };
        let sent = match (target, exit) {
            (SignalTarget::Foreground, Some(exit)) => return Err(TerminalError::TerminalEnded(exit)),
            // The terminal ended while background jobs held it, and they may still run.
            (SignalTarget::Session, Some(exit)) if self.session_members(leader_gone).is_empty() => {
                return Err(TerminalError::TerminalEnded(exit));
            }
            // Without its leader a session has no foreground job, so all its processes are
            // signalled. The leader's process id may belong to another process by now.
            (SignalTarget::Foreground, None) if !leader_gone => match group.or(self.pid) {
                Some(group) => kill_process_group(group, signal),
                None => Ok(()),
            },
            _ => {
                self.signal_session(signal);
                Ok(())
            }
        };
        match sent {
            // The group ended in the meantime.
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => {
                Err(TerminalError::Io { operation: "signal the foreground job", source: errno.into() })
            }
        }
    }

    /// Returns the living processes of the session.
    pub(super) fn session_members(&self, leader_gone: bool) -> Vec<Pid> {
        self.pid.map_or_else(Vec::new, |leader| procfs::session_members(leader, leader_gone))
    }

    pub(super) fn signal_session(&self, signal: Signal) {
        let gone = self.state().leader_gone;
        for pid in self.session_members(gone) {
            // The process may have ended in the meantime.
            let _ = kill_process(pid, signal);
        }
    }

    /// Wakes the task to schedule a poll of directory and foreground job, if the terminal has
    /// viewers.
    fn wake_for_poll(&self, state: &TerminalState) {
        if !state.viewers.is_empty() && !state.poll_scheduled {
            self.wake.notify_one();
        }
    }
}

impl std::fmt::Debug for Terminal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Terminal").field("id", &self.id).field("pid", &self.pid).finish_non_exhaustive()
    }
}
