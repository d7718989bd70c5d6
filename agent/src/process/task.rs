//! The task of one process. It reads the pipes as far as the logs have space, writes stdin,
//! terminates the process when that is due, and reports the end. No other code uses the pipes.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use rustix::fs::{Mode, OFlags};
use tokio::{
    net::unix::pipe::{Receiver, Sender},
    sync::watch,
};

use super::{OutputStream, Process, ProcessExit, Termination};
use crate::{
    child::{Child, ExitStatus},
    util::{ReadMode, or_never, sleep_until},
};

/// Largest read, in bytes. A pipe holds this much by default.
const READ_BYTES: usize = 64 * 1024;
/// Reads or writes in a row before the task checks for other events.
const READS_PER_TURN: usize = 16;
/// Silence after which outputs that another process holds count as ended. The time begins at the
/// end of the command at the earliest.
const QUIET: Duration = Duration::from_millis(250);
/// Bytes of each output that are still read after the KILL. 1 MiB is the largest pipe that an
/// unprivileged process can create, so this covers all output of the command. Later output comes
/// from a process that left the group, and is dropped.
const FINAL_READ_BYTES: usize = 1024 * 1024;
/// Delay between two counts of the bytes in stdin's pipe while a client waits until they are read.
/// No event reports that a pipe is read. The delay doubles up to the maximum until new bytes
/// arrive.
const MIN_COUNT_DELAY: Duration = Duration::from_millis(1);
const MAX_COUNT_DELAY: Duration = Duration::from_millis(50);

pub(super) struct ProcessTask {
    process: Arc<Process>,
    leader: watch::Receiver<Option<ExitStatus>>,
    stdin: Option<Sender>,
    stdout: Option<Receiver>,
    stderr: Option<Receiver>,
    termination: Termination,
    /// Stdin's pipe, opened for reading once a client has ended stdin and the write end is closed.
    /// It preserves and counts what the process has not read.
    ended_stdin: Option<OwnedFd>,
    /// Time of the next count of the bytes in stdin's pipe, if a client waits for it.
    count_at: Instant,
    count_delay: Duration,
    /// Time at which the outputs count as ended although another process holds them.
    quiet_at: Option<Instant>,
    /// Bytes of each output that may still be read after the KILL.
    final_bytes_left: [usize; 2],
    /// An output was closed although another process held it.
    output_abandoned: bool,
}

impl ProcessTask {
    /// Registers the pipes of the child with the reactor. Fails if descriptors are exhausted.
    pub(super) fn new(process: Arc<Process>, child: Child) -> io::Result<Self> {
        let deadline = process.info.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        Ok(Self {
            process,
            leader: child.ended,
            stdin: child.stdin.map(|pipe| Sender::from_owned_fd(pipe.into())).transpose()?,
            stdout: child.stdout.map(|pipe| Receiver::from_owned_fd(pipe.into())).transpose()?,
            stderr: child.stderr.map(|pipe| Receiver::from_owned_fd(pipe.into())).transpose()?,
            termination: Termination::new(deadline),
            ended_stdin: None,
            count_at: Instant::now(),
            count_delay: MIN_COUNT_DELAY,
            quiet_at: None,
            final_bytes_left: [FINAL_READ_BYTES; 2],
            output_abandoned: false,
        })
    }

    /// Runs until the process and its output have ended, and publishes the exit. Returns the state
    /// of the termination, because members of the group may live on.
    pub(super) async fn run(mut self) -> Termination {
        loop {
            let now = Instant::now();
            let check_at = self.apply_requests(now);
            if self.is_finished(now) {
                return self.finish();
            }
            let due = [check_at, self.quiet_at, self.termination.next_deadline()].into_iter().flatten().min();
            let (readable, has_input, runs) = {
                let state = self.process.state();
                let readable = [OutputStream::Stdout, OutputStream::Stderr]
                    .map(|stream| state.read_capacity(stream) > 0);
                let has_input = state.stdin.as_ref().is_some_and(|stdin| stdin.front().is_some());
                (readable, has_input, state.leader.is_none())
            };
            let (stdout, stderr) = (self.stdout.as_ref(), self.stderr.as_ref());
            // An error of a pipe is reported by the read or write that follows.
            tokio::select! {
                _ = or_never(stdout.filter(|_| readable[0]).map(Receiver::readable)) => {
                    self.read(OutputStream::Stdout, ReadMode::WhenReady);
                }
                _ = or_never(stderr.filter(|_| readable[1]).map(Receiver::readable)) => {
                    self.read(OutputStream::Stderr, ReadMode::WhenReady);
                }
                _ = or_never(self.stdin.as_ref().filter(|_| has_input).map(Sender::writable)) => self.write(),
                () = self.process.task_wakeup.notified() => {}
                () = leader_end(&mut self.leader), if runs => self.leader_ended(),
                () = sleep_until(due) => {}
            }
        }
    }

    /// Acts on requests in the shared state, and sends signals that are due. Returns the time at
    /// which held output has to be checked again, or the pipe of stdin to be counted.
    fn apply_requests(&mut self, now: Instant) -> Option<Instant> {
        self.process.send_due_signals(&mut self.termination, now);
        let mut state = self.process.state();
        if let Some(stdin) = &mut state.stdin
            && stdin.is_at_end()
        {
            self.ended_stdin = self.stdin.take().and_then(|pipe| reopen_for_reading(&pipe));
            stdin.finish();
            self.process.stdin_progress.notify_waiters();
        }
        if let Some(stdin) = &mut state.stdin
            && stdin.is_read_awaited()
            && self.count_at <= now
        {
            stdin.count_unread(self.stdin.as_ref().and_then(count_unread));
            self.count_at = now + self.count_delay;
            self.count_delay = (self.count_delay * 2).min(MAX_COUNT_DELAY);
            self.process.stdin_progress.notify_waiters();
        }
        let count_at = state.stdin.as_ref().filter(|stdin| stdin.is_read_awaited()).map(|_| self.count_at);
        let discard_at = state.check_hold(now);
        // Only a pipe that could be read counts as quiet, not a pipe whose log is full.
        if state.leader.is_some() {
            self.quiet_at = if state.is_held() { None } else { self.quiet_at.or(Some(now + QUIET)) };
        }
        [discard_at, count_at].into_iter().flatten().min()
    }

    /// Returns whether the command has ended and no more output is expected.
    fn is_finished(&mut self, now: Instant) -> bool {
        if self.process.state().leader.is_none() {
            return false;
        }
        self.is_closed() || self.is_quiet(now)
    }

    fn is_closed(&self) -> bool {
        self.stdout.is_none() && self.stderr.is_none()
    }

    /// Returns whether the outputs have been silent until `quiet_at`. Reads once more first,
    /// because output may have arrived while the agent was suspended. After the KILL, new output no
    /// longer prolongs the wait.
    fn is_quiet(&mut self, now: Instant) -> bool {
        let is_due = |task: &Self| task.quiet_at.is_some_and(|at| at <= now);
        if !is_due(self) {
            return false;
        }
        self.read(OutputStream::Stdout, ReadMode::Final);
        self.read(OutputStream::Stderr, ReadMode::Final);
        // New output has moved the deadline, and output that does not fit into its log must be read
        // first.
        self.is_closed() || is_due(self) && !self.process.state().is_held()
    }

    fn read(&mut self, stream: OutputStream, mode: ReadMode) {
        let slot = match stream {
            OutputStream::Stdout => &mut self.stdout,
            OutputStream::Stderr => &mut self.stderr,
        };
        let Some(pipe) = slot.as_ref() else { return };
        let mut buffer = vec![0; READ_BYTES];
        for _ in 0..READS_PER_TURN {
            let room = self.process.state().read_capacity(stream).min(READ_BYTES);
            if room == 0 {
                break;
            }
            let read = match mode {
                ReadMode::WhenReady => pipe.try_read(&mut buffer[..room]),
                ReadMode::Final => rustix::io::read(pipe, &mut buffer[..room]).map_err(io::Error::from),
            };
            match read {
                Ok(0) => {
                    *slot = None;
                    break;
                }
                Ok(bytes) => {
                    self.process.state().output(stream).log.push(&buffer[..bytes]);
                    self.process.output_ready.notify_waiters();
                    if !self.termination.killed {
                        self.quiet_at = self.quiet_at.map(|_| Instant::now() + QUIET);
                        continue;
                    }
                    // After the KILL, only bytes that were in the pipe can come from the command.
                    let left = &mut self.final_bytes_left[stream as usize];
                    *left = left.saturating_sub(bytes);
                    if *left == 0 {
                        self.output_abandoned = true;
                        *slot = None;
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::warn!(process = %self.process.info.id, %error, "failed to read process output");
                    *slot = None;
                    break;
                }
            }
        }
        if slot.is_none() {
            self.process.state().output(stream).closed = true;
        }
    }

    fn write(&mut self) {
        for _ in 0..READS_PER_TURN {
            let Some(data) = self.process.state().stdin.as_ref().and_then(|stdin| stdin.front()) else {
                break;
            };
            let Some(pipe) = &self.stdin else { break };
            let wrote = pipe.try_write(&data);
            let mut state = self.process.state();
            let Some(stdin) = &mut state.stdin else { break };
            match wrote {
                Ok(bytes) => {
                    stdin.wrote(bytes);
                    (self.count_at, self.count_delay) = (Instant::now(), MIN_COUNT_DELAY);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    // The process has closed its stdin.
                    stdin.count_unread(count_unread(pipe));
                    stdin.close();
                    self.stdin = None;
                }
            }
            self.process.stdin_progress.notify_waiters();
        }
    }

    fn leader_ended(&mut self) {
        let mut state = self.process.state();
        state.leader = Some(self.leader.borrow().unwrap_or(ExitStatus::Code(255)));
        if let Some(stdin) = &mut state.stdin {
            // The pipe is counted before it is closed, because that discards its bytes.
            let pipe = self.stdin.as_ref().map(AsFd::as_fd);
            if let Some(pipe) = pipe.or(self.ended_stdin.as_ref().map(AsFd::as_fd)) {
                stdin.count_unread(count_unread(&pipe));
            }
            stdin.close();
        }
        (self.stdin, self.ended_stdin) = (None, None);
        self.process.stdin_progress.notify_waiters();
    }

    fn finish(self) -> Termination {
        let mut state = self.process.state();
        let status = state.leader.unwrap_or(ExitStatus::Code(255));
        let exit = ProcessExit {
            status,
            final_offsets: [state.outputs[0].log.next(), state.outputs[1].log.next()],
            timed_out: self.termination.timed_out,
            stdin_read: state.stdin.as_ref().and_then(|stdin| stdin.read()),
            held_by_background: !self.is_closed() || self.output_abandoned,
            sleep_cause: state.sleep_cause,
            ended_at: SystemTime::now(),
        };
        tracing::info!(process = %self.process.info.id, ?status, timed_out = exit.timed_out, "process ended");
        state.exit = Some(exit);
        state.finished_at = Some(Instant::now());
        drop(state);
        self.process.output_ready.notify_waiters();
        self.process.stdin_progress.notify_waiters();
        self.termination
    }
}

/// Opens the read end of a pipe whose write end is open. Returns `None` if /proc is not mounted.
fn reopen_for_reading(pipe: &Sender) -> Option<OwnedFd> {
    let path = format!("/proc/self/fd/{}", pipe.as_fd().as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).ok()
}

/// Returns the number of bytes in a pipe.
fn count_unread(pipe: &impl AsFd) -> Option<u64> {
    rustix::io::ioctl_fionread(pipe).ok()
}

async fn leader_end(leader: &mut watch::Receiver<Option<ExitStatus>>) {
    // An error means that no exit status will arrive. The process has ended all the same.
    let _known = leader.wait_for(Option::is_some).await;
}
