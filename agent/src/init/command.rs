//! Runs the workspace's own command, such as an IDE. The command is started after the claim,
//! restarted when it ends, and ended with the agent. Its failures are reported with the activity.
//!
//! Signals that the container's init receives are forwarded to the command's process group, while
//! it runs. TERM and INT are for the agent itself, which then ends everything in order (see
//! [`super::handle_termination_signals`]). These are not forwarded either:
//!
//! - CHLD, and signals by which the kernel reports on a process itself: faults (SEGV, BUS, ILL,
//!   FPE, TRAP, SYS, ABRT), PIPE, URG, IO, VTALRM, PROF, XCPU, XFSZ.
//! - TSTP, TTIN, TTOU: job control, and the command has no terminal. A user who runs the agent by
//!   hand may stop it with Ctrl-Z.
//! - PWR and real-time signals, whose meaning depends on the init or program.
//!
//! KILL and STOP cannot be caught.

use std::{
    collections::VecDeque,
    convert::Infallible,
    io,
    os::{fd::OwnedFd, unix::process::CommandExt},
    process::Stdio,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures_util::future::select_all;
use podling_proto::error::with_causes;
use rustix::process::Signal;
use tokio::{
    io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::unix::pipe::Receiver,
    signal::unix::{self, SignalKind, signal},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    activity::{
        ActivityMonitor,
        notices::{CommandFailure, CommandFailureCause},
    },
    child::{Child, Children, ExitStatus, ProcessGroup, signals},
    spawn::{Launcher, Program, SpawnError, spawn_failed},
    terminal::EscapeScanner,
    util::{DoublingBackoff, lock},
};

/// Delay before the first restart. It doubles with each restart, up to [`MAX_RESTART_DELAY`].
const MIN_RESTART_DELAY: Duration = Duration::from_secs(1);
/// Maximum delay before a restart.
const MAX_RESTART_DELAY: Duration = Duration::from_secs(60);
/// Time that a command must run to reset the delay.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);
/// Time that a restarted command must run before its last failure is no longer reported.
const RECOVERED_AFTER: Duration = Duration::from_secs(15);

/// Forwarded signals. By convention they make servers reload their configuration, reopen their
/// logs, or end.
const FORWARDED_SIGNALS: [Signal; 7] =
    [Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2, Signal::ALARM, Signal::CONT, Signal::WINCH];

/// Lines that are retained. Older ones are dropped.
const MAX_LINES: usize = 20;
/// Longest line that is retained, in characters. The rest is cut off.
const MAX_LINE_CHARS: usize = 200;
/// Time that the last output may take to arrive after the command has ended. Background processes
/// of the command can keep its output open for longer.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(250);
const BEL: u8 = 0x07;
/// Bytes that are read at once.
const READ_BYTES: usize = 16 * 1024;

#[derive(Debug, Clone)]
pub struct WorkspaceCommand {
    pub children: Children,
    pub launcher: Launcher,
    /// Command to run if the claim names none. Empty if there is none.
    pub fallback: Vec<String>,
    /// Receives the signals that are forwarded to the command.
    pub running: RunningCommand,
    /// Receives the failures of the command.
    pub activity: ActivityMonitor,
    /// Cancelled when the workspace's processes are to end.
    pub processes_ending: CancellationToken,
}

impl WorkspaceCommand {
    /// Starts the command after the claim, and restarts it each time it ends, until
    /// `processes_ending` is cancelled. Does nothing in maintenance mode. Failures never end the
    /// agent.
    pub async fn keep_running(&self) {
        let mut claims = self.launcher.claims().clone();
        let Ok(claim) = claims.wait_for(Option::is_some).await.map(|claim| claim.clone()) else {
            return;
        };
        if claim.as_ref().is_some_and(|claim| claim.maintenance) {
            return;
        }
        let named = claim.map(|claim| claim.command.clone()).filter(|argv| !argv.is_empty());
        let argv = named.unwrap_or_else(|| self.fallback.clone());
        if !argv.is_empty() {
            self.processes_ending.run_until_cancelled(self.restart(&argv)).await;
        }
    }

    async fn restart(&self, argv: &[String]) {
        let mut backoff = DoublingBackoff::new(MIN_RESTART_DELAY, MAX_RESTART_DELAY);
        let mut failures = 0_u32;
        loop {
            let (started, tail) = (Instant::now(), OutputTail::default());
            let cause = match self.run(argv, &tail).await {
                Ok(ended) => {
                    tracing::warn!(command = argv[0], ?ended, "workspace command ended");
                    CommandFailureCause::Ended(ended)
                }
                Err(error) => {
                    let error = with_causes(&error);
                    tracing::error!(%error, "failed to start workspace command");
                    CommandFailureCause::NotStarted(error)
                }
            };
            if started.elapsed() >= HEALTHY_AFTER {
                backoff.reset();
                failures = 0;
            }
            failures = failures.saturating_add(1);
            let (program, output) = (argv[0].clone(), tail.last_lines());
            let failure = CommandFailure { program, cause, failures, output };
            self.activity.set_command_failure(Some(Arc::new(failure)));
            sleep(backoff.next()).await;
        }
    }

    /// Runs the command to its end.
    async fn run(&self, argv: &[String], tail: &OutputTail) -> Result<Option<ExitStatus>, SpawnError> {
        let program = Program { argv: argv.to_vec(), ..Program::default() };
        let mut command = self.launcher.command(&program)?;
        // The command gets its own process group, so that signals to the agent's group do not reach
        // it. Its output goes to the agent's stdout and stderr.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let failed = |error| spawn_failed(&argv[0], error);
        let mut child = self.children.spawn(&mut command).map_err(failed)?;
        let _runs = self.running.begin(child.group.clone());
        let readers = tail.read_from(&mut child).map_err(failed)?;
        tracing::info!(command = argv[0], pid = child.pid.as_raw_nonzero(), "workspace command started");
        if timeout(RECOVERED_AFTER, child.ended.wait_for(Option::is_some)).await.is_err() {
            self.activity.set_command_failure(None);
        }
        let ended = child.ended.wait_for(Option::is_some).await.ok().and_then(|ended| *ended);
        let _background = timeout(DRAIN_TIMEOUT, readers.wait()).await;
        Ok(ended)
    }
}

/// Process group of the running command. Cheap to clone; all clones share it.
#[derive(Debug, Clone, Default)]
pub struct RunningCommand(Arc<Mutex<Option<ProcessGroup>>>);

/// Clears the running command when dropped.
#[derive(Debug)]
struct RunningCommandGuard(RunningCommand);

impl RunningCommand {
    fn begin(&self, group: ProcessGroup) -> RunningCommandGuard {
        *lock(&self.0) = Some(group);
        RunningCommandGuard(self.clone())
    }

    /// Forwards signals forever. Exactly one task runs this.
    pub async fn forward(&self) -> io::Result<Infallible> {
        let listen = |forwarded: Signal| Ok((forwarded, signal(SignalKind::from_raw(forwarded.as_raw()))?));
        let mut streams: Vec<(Signal, unix::Signal)> =
            FORWARDED_SIGNALS.into_iter().map(listen).collect::<io::Result<_>>()?;
        loop {
            let received = streams.iter_mut().map(|(signal, stream)| {
                Box::pin(async move {
                    stream.recv().await;
                    *signal
                })
            });
            let (signal, ..) = select_all(received).await;
            let passed = lock(&self.0).as_ref().is_some_and(|group| group.signal(signal));
            tracing::info!(
                signal = signals::name(signal.as_raw()),
                forwarded = passed,
                "signal for the workspace command"
            );
        }
    }
}

impl Drop for RunningCommandGuard {
    fn drop(&mut self) {
        *lock(&self.0.0) = None;
    }
}

/// The last lines of one run of the command. Clones share them.
#[derive(Debug, Clone, Default)]
struct OutputTail(Arc<Mutex<TailLines>>);

/// The end of one stream of text, as lines without control characters.
#[derive(Debug, Default)]
struct TailLines {
    complete: VecDeque<String>,
    /// The present line of stdout and of stderr.
    open: [OpenLine; 2],
}

#[derive(Debug, Default)]
struct OpenLine {
    bytes: Vec<u8>,
    /// Finds escape sequences, which are left out of the line.
    scanner: EscapeScanner,
}

impl OutputTail {
    /// Begins to read the child's stdout and stderr, which must be pipes. The tasks run until all
    /// processes of this run have closed their output, so that no process fails because its output
    /// is closed.
    fn read_from(&self, child: &mut Child) -> io::Result<TaskTracker> {
        let readers = TaskTracker::new();
        if let Some(stdout) = child.stdout.take() {
            readers.spawn(self.clone().pass_on(pipe(stdout)?, tokio::io::stdout(), 0));
        }
        if let Some(stderr) = child.stderr.take() {
            readers.spawn(self.clone().pass_on(pipe(stderr)?, tokio::io::stderr(), 1));
        }
        readers.close();
        Ok(readers)
    }

    async fn pass_on(self, mut pipe: Receiver, mut to: impl AsyncWrite + Unpin, stream: usize) {
        let mut buffer = vec![0; READ_BYTES];
        while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
            lock(&self.0).push(stream, &buffer[..count]);
            // The agent's own output may be closed. The command must not notice.
            if to.write_all(&buffer[..count]).await.is_ok() {
                let _closed = to.flush().await;
            }
        }
    }

    /// Returns the last lines, oldest first.
    fn last_lines(&self) -> Vec<String> {
        lock(&self.0).last_lines()
    }
}

impl TailLines {
    fn push(&mut self, stream: usize, bytes: &[u8]) {
        for &byte in bytes {
            let open = &mut self.open[stream];
            if byte == b'\n' && !open.scanner.is_in_string() {
                self.complete.extend(std::mem::take(open).text());
                if self.complete.len() > MAX_LINES {
                    self.complete.pop_front();
                }
                continue;
            }
            // Terminals end only titles by BEL. Here it ends any string, because a string without
            // its end would hide all further output.
            if byte == BEL && open.scanner.is_in_string() {
                open.scanner = EscapeScanner::default();
                continue;
            }
            let was_text = open.scanner.is_ground();
            open.scanner.scan(&[byte], |_, _| {});
            if was_text && open.scanner.is_ground() {
                open.push(byte);
            }
        }
    }

    fn last_lines(&self) -> Vec<String> {
        let open = self.open.iter().filter_map(OpenLine::text);
        let mut lines: Vec<_> = self.complete.iter().cloned().chain(open).collect();
        lines.drain(..lines.len().saturating_sub(MAX_LINES));
        lines
    }
}

impl OpenLine {
    fn push(&mut self, byte: u8) {
        // A carriage return is retained, because only the next byte shows whether it ends the line.
        if self.bytes.last() == Some(&b'\r') && byte != b'\r' {
            self.bytes.clear();
        }
        if self.bytes.len() < MAX_LINE_CHARS * 4 {
            self.bytes.push(byte);
        }
    }

    /// Returns the line without control characters, or `None` if it is blank.
    fn text(&self) -> Option<String> {
        let text = String::from_utf8_lossy(&self.bytes);
        let text: String = text
            .chars()
            .map(|c| if c == '\t' { ' ' } else { c })
            .filter(|c| !c.is_control())
            .take(MAX_LINE_CHARS)
            .collect();
        Some(text.trim_end().to_owned()).filter(|text| !text.is_empty())
    }
}

fn pipe(end: impl Into<OwnedFd>) -> io::Result<Receiver> {
    Receiver::from_owned_fd(end.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail(pieces: &[(usize, &str)]) -> Vec<String> {
        let mut lines = TailLines::default();
        pieces.iter().for_each(|(stream, text)| lines.push(*stream, text.as_bytes()));
        lines.last_lines()
    }

    #[test]
    fn tail_has_the_last_lines_as_plain_text() {
        assert_eq!(
            tail(&[(0, "one\ntw"), (1, "\x1b[31mbad\x1b[0m\r\n"), (0, "o\n\n"), (0, "unfinished")]),
            ["one", "bad", "two", "unfinished"]
        );
        assert_eq!(tail(&[(0, "10 %\r50 %\r100 %\n")]), ["100 %"], "a progress bar");
        assert_eq!(tail(&[(0, "\x1b]0;title\x07x\x1b]0;a\x1b\\y\x1b(Bz\n")]), ["xyz"], "a title is no text");
        assert_eq!(tail(&[(0, "\x1b_a\nb\x07one\n\x1bPq\x07two\n")]), ["one", "two"], "BEL ends any string");
        let many: String = (0..100).map(|n| format!("line {n}\n")).collect();
        let lines = tail(&[(0, &many)]);
        assert_eq!((lines.len(), lines[0].as_str(), lines[19].as_str()), (20, "line 80", "line 99"));
        let long = tail(&[(0, &"ä".repeat(100_000))]);
        assert_eq!(long[0].chars().count(), MAX_LINE_CHARS);
    }
}
