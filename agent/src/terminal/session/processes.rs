//! Processes of a session: found in `/proc`, polled, signalled, and ended with HUP, TERM and KILL.
//!
//! Signals that end a session go to every process of the session, not only to one process group.
//!
//! No event reports the working directory and the foreground job, so they are polled. A poll
//! follows shortly after a change, and only while the terminal has viewers. An idle terminal thus
//! costs no wake-up.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    process::{Pid, Signal, kill_process, kill_process_group},
};
use tokio::time::{sleep, timeout};

use super::{Terminal, TerminalState};
use crate::{
    child::{ExitStatus, signals},
    terminal::types::{SignalTarget, TerminalError, TerminalExit},
};

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

/// Returns the command name of the leader of a process group. If the leader is gone, as the first
/// program of a pipeline may be, returns the name of another member. Returns `None` if the group is
/// empty.
fn command_name(group: Pid) -> Option<String> {
    let name = |pid: i32| fs::read_to_string(format!("/proc/{pid}/comm")).ok();
    let number = group.as_raw_nonzero().get();
    let name = name(number).or_else(|| {
        let member = processes().into_iter().find(|process| process.group == number && process.is_alive)?;
        name(member.pid)
    })?;
    Some(name.trim_end().to_owned())
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
    let sid = leader.as_raw_nonzero().get();
    let members: Vec<ProcessMembership> =
        processes().into_iter().filter(|process| process.session == sid && process.is_alive).collect();
    if leader_gone && members.iter().any(|process| process.pid == sid) {
        return Vec::new();
    }
    members.iter().filter_map(|process| Pid::from_raw(process.pid)).collect()
}

/// Group, session and liveness of a process, from `/proc/<pid>/stat`.
#[derive(Debug, PartialEq, Eq)]
struct ProcessMembership {
    pid: i32,
    group: i32,
    session: i32,
    is_alive: bool,
}

fn processes() -> Vec<ProcessMembership> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let read = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        parse(pid, &fs::read_to_string(entry.path().join("stat")).ok()?)
    };
    entries.flatten().filter_map(read).collect()
}

/// Parses a `stat` line. The command name in it may contain any characters, including parentheses.
fn parse(pid: i32, stat: &str) -> Option<ProcessMembership> {
    const THREADS: usize = 17;
    let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse().ok();
    // A process whose first thread has ended looks dead although its other threads run.
    let dead = matches!(*fields.first()?, "Z" | "X") && number(THREADS).is_none_or(|threads| threads <= 1);
    Some(ProcessMembership { pid, group: number(2)?, session: number(3)?, is_alive: !dead })
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn stat_with_parentheses_in_command_is_parsed() {
        let read = parse(9, "9 (a) b (c) S 1 7 5 34816 7 0");
        assert_eq!(read, Some(ProcessMembership { pid: 9, group: 7, session: 5, is_alive: true }));
        assert_eq!(parse(9, "rubbish"), None);
    }

    #[test]
    fn process_is_alive_while_any_thread_runs() {
        let stat = |state: char, threads: u32| {
            format!("9 (x) {state} 1 9 9 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 {threads} 0 1 0 0")
        };
        let is_alive = |stat: String| parse(9, &stat).expect("readable").is_alive;
        assert!(is_alive(stat('S', 1)) && is_alive(stat('Z', 2)));
        assert!(!is_alive(stat('Z', 1)) && !is_alive(stat('X', 0)));
    }

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
