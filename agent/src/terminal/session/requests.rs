//! Requests to a terminal: input, window sizes, signals and the end of the session. Also the
//! processes of the session, which are found in `/proc`.
//!
//! Signals that end a session go to every process of the session, not only to one process group.
//!
//! No event reports the working directory and the foreground job, so they are polled. A poll
//! follows shortly after a change, and only while the terminal has viewers. An idle terminal thus
//! costs no wake-up.

use std::{
    fs,
    io::ErrorKind,
    path::PathBuf,
    time::{Duration, Instant},
};

use podling_proto::procfs::ProcStat;
use rustix::{
    io::Errno,
    process::{Pid, Signal, kill_process, kill_process_group},
};
use tokio::time::{sleep, timeout};

use super::{Terminal, TerminalState};
use crate::{
    admission::{AdmitError, Attempt, Intent},
    child::{ExitStatus, signals},
    terminal::{
        input::{CheckedInput, InputPosition},
        types::{ClientId, InputKind, SignalTarget, TerminalError, TerminalExit, TerminalInput, WindowSize},
    },
};

/// Largest accepted input message, in bytes.
const MAX_INPUT_BYTES: usize = 1024 * 1024;
/// Bytes after which the task stops writing to the PTY until its next round. A large paste thus
/// delays nothing else.
const WRITE_BYTES: usize = 64 * 1024;
/// Limit on resizes that wait for the screen model. Beyond it the oldest is dropped.
const MAX_PENDING_RESIZES: usize = 64;

/// Default time between TERM and KILL.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(5);
/// Longest time between HUP and TERM. Shells exit on HUP and pass it on to their jobs.
const HANGUP_GRACE: Duration = Duration::from_millis(300);
/// Interval at which the remaining processes of the session are listed.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Time that the session has to become empty after KILL. The terminal then has the same time to
/// end.
const KILLED_GRACE: Duration = Duration::from_secs(5);
/// Delay between a change and the poll that follows it. A burst of changes costs one poll.
const POLL_DELAY: Duration = Duration::from_millis(150);

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

    // === processes ===

    /// Returns the command in the foreground. `None` while a shell waits at its prompt, and after
    /// the end. If the terminal was created for a program that is not a shell, that program is the
    /// foreground command.
    pub(super) fn foreground_command(&self, state: &TerminalState) -> Option<String> {
        let group = state.lifecycle.pty()?.foreground()?;
        let is_waiting_shell = Some(group) == self.pid() && self.spec.restart.is_some();
        if is_waiting_shell { None } else { command_name(group) }
    }

    /// Returns the name of the terminal's foreground command, for the activity assessment.
    pub(crate) fn foreground_job(&self) -> Option<String> {
        self.foreground_command(&self.state())
    }

    /// Returns the directory that the shell reported by OSC 7, otherwise the leader's working
    /// directory. After the end it is the last known directory.
    pub(super) fn current_cwd(&self, state: &TerminalState) -> String {
        let known = || state.cwd.value.clone();
        if state.cwd_reported || state.lifecycle.exited().is_some() {
            return known();
        }
        let polled = self.pid().and_then(working_directory);
        polled.map_or_else(known, |path| path.to_string_lossy().into_owned())
    }

    /// Polls if a poll is due, and schedules the next one after a change. Returns its time, or
    /// `None` if none is scheduled.
    pub(super) fn poll(&self, state: &mut TerminalState, now: Instant) -> Option<Instant> {
        if state.poll_at.is_some_and(|at| at <= now) {
            state.poll_at = None;
            let at = state.log.next();
            let (job, cwd) = (self.foreground_command(state).unwrap_or_default(), self.current_cwd(state));
            if state.foreground.set(job, at) | state.cwd.set(cwd, at) {
                state.wake_viewers();
            }
        }
        if state.poll_at.is_none()
            && std::mem::take(&mut state.changed_since_poll)
            && !state.viewers.is_empty()
        {
            state.poll_at = Some(now + POLL_DELAY);
        }
        state.poll_at
    }

    /// Sends a signal by name, such as `INT`.
    pub(crate) fn signal(&self, signal: &str, target: SignalTarget) -> Result<(), TerminalError> {
        let signal = signals::by_name(signal)
            .ok_or(TerminalError::BadField { field: "signal", allowed: "a name such as INT or TERM" })?;
        let (group, exit) = {
            let state = self.state();
            (state.lifecycle.pty().and_then(|pty| pty.foreground()), state.lifecycle.exited())
        };
        let sent = match (target, exit) {
            (SignalTarget::Foreground, Some(exit)) => return Err(TerminalError::TerminalEnded(exit)),
            // The terminal ended while background jobs held it, and they may still run.
            (SignalTarget::Session, Some(exit)) if self.members().is_empty() => {
                return Err(TerminalError::TerminalEnded(exit));
            }
            // Without its leader a session has no foreground job, so all its processes are
            // signalled. The leader's process id may belong to another process by now.
            (SignalTarget::Foreground, None) if !self.leader_gone() => match group.or(self.pid()) {
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

    /// Sends HUP, TERM and KILL in turn until the session has no processes. `grace` is the time
    /// between TERM and KILL. Returns once the terminal has ended, or fails if it does not end
    /// after KILL.
    pub(crate) async fn end_session(&self, grace: Duration) -> Result<TerminalExit, TerminalError> {
        self.state().lifecycle.close();
        // The task stops waiting for slow lossless viewers.
        self.wake.notify_one();
        for (signal, limit) in
            [(Signal::HUP, HANGUP_GRACE.min(grace)), (Signal::TERM, grace), (Signal::KILL, KILLED_GRACE)]
        {
            self.signal_session(signal);
            if signal != Signal::KILL {
                // A stopped process handles the signal only after it was continued.
                self.signal_session(Signal::CONT);
            }
            if self.session_is_over(signal, limit).await {
                break;
            }
        }
        // A process of another session that holds the PTY is not ended, and it may print for ever.
        // So the task no longer waits for silence.
        self.state().lifecycle.drain();
        self.wake.notify_one();
        timeout(KILLED_GRACE, self.wait_until(|state| state.lifecycle.exited()))
            .await
            .map_err(|_| TerminalError::ProcessesSurvivedKill)
    }

    /// Waits until the session has no processes. Returns false if it still has some after `limit`.
    async fn session_is_over(&self, signal: Signal, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        loop {
            if self.members().is_empty() {
                return true;
            }
            if Instant::now() >= until {
                return false;
            }
            if signal == Signal::KILL {
                // A process may have forked between the listing and the KILL.
                self.signal_session(signal);
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Kills the session and records its exit, because the terminal's task has panicked.
    pub(super) fn abort(&self) {
        self.signal_session(Signal::KILL);
        let mut state = self.state();
        state.snapshots.give_up();
        self.finish(&mut state, ExitStatus::Signal(Signal::KILL.as_raw()), false);
    }

    fn signal_session(&self, signal: Signal) {
        for pid in self.members() {
            // The process may have ended in the meantime.
            let _ = kill_process(pid, signal);
        }
    }

    /// Returns the living processes of the session.
    fn members(&self) -> Vec<Pid> {
        self.pid().map_or_else(Vec::new, |leader| session_members(leader, self.leader_gone()))
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

/// Returns the command name of the leader of a process group. If the leader is gone, as the first
/// program of a pipeline may be, returns the name of another member. Returns `None` if the group is
/// empty.
fn command_name(group: Pid) -> Option<String> {
    let number = number(group);
    let leader = ProcStat::read(number).ok();
    let member = || processes().find(|process| process.group == number && !process.has_ended);
    leader.or_else(member).map(|process| process.name)
}

fn working_directory(pid: Pid) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{}/cwd", pid.as_raw_nonzero())).ok()
}

/// Returns the living processes of a session. Reads one file for each process of the system.
///
/// If `leader_gone` is true, the leader was reaped. The kernel does not reuse the leader's number
/// while the session has members. If a process has that number nevertheless, it belongs to another
/// session, and the result is empty.
pub(crate) fn session_members(leader: Pid, leader_gone: bool) -> Vec<Pid> {
    let session = number(leader);
    let members: Vec<_> =
        processes().filter(|process| process.session == session && !process.has_ended).collect();
    if leader_gone && members.iter().any(|process| process.pid == session) {
        return Vec::new();
    }
    members.iter().filter_map(|process| Pid::from_raw(process.pid.cast_signed())).collect()
}

fn processes() -> impl Iterator<Item = ProcStat> {
    ProcStat::all().into_iter().flatten().flatten()
}

fn number(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get().unsigned_abs()
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        process::{Command, Stdio},
    };

    use super::*;

    /// Starts a session of its own. The leader of the test's session may be in another PID
    /// namespace, where it has no number.
    #[test]
    fn session_members_are_found() {
        let mut command = Command::new("setsid");
        command.args(["sh", "-c", "echo begun; read line"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("setsid starts");
        let mut said = [0; 6];
        let stdout = child.stdout.as_mut().expect("piped stdout");
        stdout.read_exact(&mut said).expect("the shell has started");
        let leader = Pid::from_child(&child);

        assert_eq!(session_members(leader, false), [leader]);
        assert_eq!(
            session_members(leader, true),
            [],
            "the number of a reaped leader belongs to another session"
        );
        assert!(command_name(leader).is_some_and(|name| name == "sh") && working_directory(leader).is_some());

        drop(child.stdin.take());
        child.wait().expect("the shell exits");
        assert_eq!(session_members(leader, false), []);
    }
}
