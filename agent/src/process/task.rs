//! The task of one process: reads its pipes as far as there is room, feeds its stdin, ends it when that is due, and says when
//! all is over. Nobody else touches the pipes.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tokio::{
    net::unix::pipe::{Receiver, Sender},
    sync::watch,
};

use super::{OutputStream, Process, ProcessExit, ending::Ending, watcher::until};
use crate::child::{Child, ExitStatus};

/// Read at a time: what a pipe holds.
const READ_BYTES: usize = 64 * 1024;
/// Reads in a row before the others get their turn.
const READS: usize = 16;
/// After the leader's end, output that something else holds is over when it was quiet for so long and then gives nothing.
const QUIET: Duration = Duration::from_millis(250);
/// What a pipe holds at most, unless root says otherwise. So much is read of each output after the KILL: it may be the command's
/// own. What comes behind it is of somebody who has left the group, and who might print for ever.
const LAST_BYTES: usize = 1024 * 1024;

pub(super) struct Task {
    process: Arc<Process>,
    leader: watch::Receiver<Option<ExitStatus>>,
    stdin: Option<Sender>,
    stdout: Option<Receiver>,
    stderr: Option<Receiver>,
    ending: Ending,
    /// When the outputs count as over although they are held.
    quiet_at: Option<Instant>,
    /// What may still be read of each after the KILL.
    last_bytes: [usize; 2],
    /// An output was given up although somebody else held it.
    gave_up: bool,
}

/// A child's pipes, on the reactor.
pub(super) struct Pipes {
    stdin: Option<Sender>,
    stdout: Option<Receiver>,
    stderr: Option<Receiver>,
}

impl Pipes {
    pub(super) fn of(child: &mut Child) -> io::Result<Self> {
        Ok(Self {
            stdin: child.stdin.take().map(|pipe| Sender::from_owned_fd(pipe.into())).transpose()?,
            stdout: child.stdout.take().map(|pipe| Receiver::from_owned_fd(pipe.into())).transpose()?,
            stderr: child.stderr.take().map(|pipe| Receiver::from_owned_fd(pipe.into())).transpose()?,
        })
    }
}

/// What a turn of the task was about.
enum Turn {
    Readable(OutputStream),
    Writable,
    Moved,
    LeaderEnded,
    Due,
}

/// How a pipe is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    /// When the reactor says so.
    AsHeard,
    /// Before it is said to have ended: whatever the reactor says, which has heard nothing while the agent was held up.
    Last,
}

/// What is worth waiting for.
struct Can {
    read: [bool; 2],
    write: bool,
    end: bool,
}

impl Task {
    pub(super) fn new(
        process: Arc<Process>,
        pipes: Pipes,
        leader: watch::Receiver<Option<ExitStatus>>,
    ) -> Self {
        let deadline = process.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let Pipes { stdin, stdout, stderr } = pipes;
        Self {
            process,
            leader,
            stdin,
            stdout,
            stderr,
            ending: Ending::new(deadline),
            quiet_at: None,
            last_bytes: [LAST_BYTES; 2],
            gave_up: false,
        }
    }

    /// Runs until all is over and said. Returns how far the process's end has come: others of its group may live on.
    pub(super) async fn run(mut self) -> Ending {
        loop {
            let now = Instant::now();
            let let_go_at = self.look(now);
            if self.is_over(now) {
                return self.finish();
            }
            let due = [let_go_at, self.quiet_at, self.ending.next()].into_iter().flatten().min();
            let can = self.can();
            let turn = tokio::select! {
                () = readable(self.stdout.as_ref().filter(|_| can.read[0])) => Turn::Readable(OutputStream::Stdout),
                () = readable(self.stderr.as_ref().filter(|_| can.read[1])) => Turn::Readable(OutputStream::Stderr),
                () = writable(self.stdin.as_ref().filter(|_| can.write)) => Turn::Writable,
                () = self.process.moved.notified() => Turn::Moved,
                () = end_of(&mut self.leader), if can.end => Turn::LeaderEnded,
                () = until(due) => Turn::Due,
            };
            match turn {
                Turn::Readable(stream) => self.read(stream, Look::AsHeard),
                Turn::Writable => self.write(),
                Turn::LeaderEnded => self.leader_ended(),
                Turn::Moved | Turn::Due => {}
            }
        }
    }

    /// What others left in the state, and what is due; when to look at held output again.
    fn look(&mut self, now: Instant) -> Option<Instant> {
        let mut state = self.process.state();
        let mut signals = Vec::new();
        if let Some(grace) = state.end_wanted.take() {
            signals.extend_from_slice(self.ending.want(now, grace));
            state.end_begins();
        }
        signals.extend_from_slice(self.ending.due(now));
        if let Some(stdin) = &mut state.stdin
            && stdin.is_at_end()
        {
            self.stdin = None;
            stdin.finish();
            self.process.fed.notify_waiters();
        }
        let let_go_at = state.let_go(now);
        // Quiet is a pipe that could be read and gives nothing; one that waits for room is not.
        if state.leader.is_some() {
            self.quiet_at = if state.is_held() { None } else { self.quiet_at.or(Some(now + QUIET)) };
        }
        drop(state);
        for signal in signals {
            self.process.group.signal(signal);
        }
        let_go_at
    }

    fn can(&self) -> Can {
        let state = self.process.state();
        Can {
            read: [OutputStream::Stdout, OutputStream::Stderr].map(|stream| state.room(stream) > 0),
            write: state.stdin.as_ref().is_some_and(|stdin| stdin.front().is_some()),
            end: state.leader.is_none(),
        }
    }

    /// The leader has ended, and nothing more comes or is waited for.
    fn is_over(&mut self, now: Instant) -> bool {
        if self.process.state().leader.is_none() {
            return false;
        }
        self.is_closed() || self.is_quiet(now)
    }

    fn is_closed(&self) -> bool {
        self.stdout.is_none() && self.stderr.is_none()
    }

    /// Quiet is what gives nothing when it is read, not what nobody has looked at for a while: the agent may have been held up.
    fn is_quiet(&mut self, now: Instant) -> bool {
        let is_due = |task: &Self| task.quiet_at.is_some_and(|at| at <= now);
        if !is_due(self) {
            return false;
        }
        self.read(OutputStream::Stdout, Look::Last);
        self.read(OutputStream::Stderr, Look::Last);
        // What came puts it off; what there was no room for is waited for.
        self.is_closed() || is_due(self) && !self.process.state().is_held()
    }

    fn read(&mut self, stream: OutputStream, look: Look) {
        let slot = match stream {
            OutputStream::Stdout => &mut self.stdout,
            OutputStream::Stderr => &mut self.stderr,
        };
        let Some(pipe) = slot.as_ref() else { return };
        let mut buffer = vec![0; READ_BYTES];
        for _ in 0..READS {
            let room = self.process.state().room(stream).min(READ_BYTES);
            if room == 0 {
                break;
            }
            let read = match look {
                Look::AsHeard => pipe.try_read(&mut buffer[..room]),
                Look::Last => rustix::io::read(pipe, &mut buffer[..room]).map_err(io::Error::from),
            };
            match read {
                Ok(0) => {
                    *slot = None;
                    break;
                }
                Ok(bytes) => {
                    self.process.state().output(stream).log.push(&buffer[..bytes]);
                    self.process.wake.notify_waiters();
                    if !self.ending.killed() {
                        self.quiet_at = self.quiet_at.map(|_| Instant::now() + QUIET);
                        continue;
                    }
                    // Whoever goes on printing after the KILL is not the command that was to be ended.
                    let left = &mut self.last_bytes[stream as usize];
                    *left = left.saturating_sub(bytes);
                    if *left == 0 {
                        self.gave_up = true;
                        *slot = None;
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::warn!(process = %self.process.id, %error, "reading a pipe");
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
        for _ in 0..READS {
            let Some(data) = self.process.state().stdin.as_ref().and_then(|stdin| stdin.front()) else {
                break;
            };
            let Some(pipe) = &self.stdin else { break };
            let wrote = pipe.try_write(&data);
            let mut state = self.process.state();
            let Some(stdin) = &mut state.stdin else { break };
            match wrote {
                Ok(bytes) => stdin.wrote(bytes),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    // The process has closed its end.
                    stdin.close();
                    self.stdin = None;
                }
            }
            self.process.fed.notify_waiters();
        }
    }

    fn leader_ended(&mut self) {
        let mut state = self.process.state();
        state.leader = Some(self.leader.borrow().unwrap_or(ExitStatus::Code(255)));
        if let Some(stdin) = &mut state.stdin {
            stdin.close();
        }
        self.stdin = None;
        self.process.fed.notify_waiters();
    }

    fn finish(self) -> Ending {
        let mut state = self.process.state();
        let how = state.leader.unwrap_or(ExitStatus::Code(255));
        let exit = ProcessExit {
            status: how,
            final_offsets: [state.outputs[0].log.next(), state.outputs[1].log.next()],
            timed_out: self.ending.timed_out,
            held_by_background: !self.is_closed() || self.gave_up,
            ended_at: SystemTime::now(),
        };
        tracing::info!(process = %self.process.id, ?how, timed_out = exit.timed_out, "a process has ended");
        state.exit = Some(exit);
        state.over_at = Some(Instant::now());
        drop(state);
        self.process.wake.notify_waiters();
        self.process.fed.notify_waiters();
        self.ending
    }
}

async fn end_of(leader: &mut watch::Receiver<Option<ExitStatus>>) {
    // An error means that nobody will ever know how it ended; that it did is all the same.
    let _known = leader.wait_for(Option::is_some).await;
}

async fn readable(pipe: Option<&Receiver>) {
    match pipe {
        // An error shows when it is read.
        Some(pipe) => drop(pipe.readable().await),
        None => std::future::pending().await,
    }
}

async fn writable(pipe: Option<&Sender>) {
    match pipe {
        Some(pipe) => drop(pipe.writable().await),
        None => std::future::pending().await,
    }
}
