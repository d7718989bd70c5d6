//! Starts a remote command, follows it to its end across broken connections, and writes its stdout
//! and stderr locally.
//!
//! Output that a new connection repeats is dropped, and output that is missing is counted. If a write
//! to the local output fails, the command is ended, like a local command whose writes fail.

use std::{io, time::Duration};

use bytes::{Buf as _, Bytes};
use podling_proto::{
    agent::v1::{
        Output, OutputStream, ProcessEvent, ProcessExit, SleepCause, StartProcessRequest,
        WatchProcessRequest, process_event, process_exit::How,
    },
    error::{self, Reason},
    text,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tonic::{Status, Streaming};

use crate::{
    backoff::{RetryBackoff, is_retryable},
    client::WorkspaceClient,
    failure::{self, CommandFailure},
    notice, signal,
    spinner::WakeSpinner,
    stdio::AsyncStdio,
};

/// How long the start of a command is retried while the connection breaks or the agent is not
/// ready.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Retry delay above which a lost connection is reported to the user.
const NOTICE_DELAY: Duration = Duration::from_millis(500);

/// A process that the agent has started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartedProcess {
    pub process_id: String,
    /// Epoch of the process's output logs.
    pub epoch: u64,
}

/// Starts one command and follows it.
#[derive(Debug)]
pub struct CommandFollower {
    workspace_client: WorkspaceClient,
    wake_spinner: WakeSpinner,
    request: StartProcessRequest,
    started: watch::Sender<Option<StartedProcess>>,
    positions: OutputPositions,
    stdout: AsyncStdio,
    stderr: AsyncStdio,
    /// Once a write has failed, further output is dropped.
    output_health: OutputHealth,
    since: Instant,
}

/// Why an event stream ended.
enum StreamEnd {
    Exit(ProcessExit),
    Disconnected(Status),
}

impl CommandFollower {
    /// Creates a follower of the command in `request`. The follower sends to `started` once the
    /// process runs, and records the first failed write of its output.
    pub fn new(
        workspace_client: WorkspaceClient,
        wake_spinner: WakeSpinner,
        request: StartProcessRequest,
        started: watch::Sender<Option<StartedProcess>>,
        output_health: OutputHealth,
    ) -> io::Result<Self> {
        let (stdout, stderr) = (AsyncStdio::writing(io::stdout())?, AsyncStdio::writing(io::stderr())?);
        Ok(Self {
            workspace_client,
            wake_spinner,
            request,
            started,
            positions: OutputPositions::new(0),
            stdout,
            stderr,
            output_health,
            since: Instant::now(),
        })
    }

    /// Follows the command to its end. Returns its exit.
    pub async fn follow(mut self) -> Result<ProcessExit, CommandFailure> {
        let mut backoff = RetryBackoff::default();
        let mut notified = false;
        loop {
            let ended = match self.open().await {
                Ok(events) => {
                    backoff.reset();
                    if std::mem::take(&mut notified) {
                        notice!("podling: reconnected");
                    }
                    self.drain(events).await
                }
                Err(status) => StreamEnd::Disconnected(status),
            };
            match ended {
                StreamEnd::Exit(exit) => {
                    if let Some(why) = describe_sleep(&exit) {
                        notice!("podling: {why}");
                    }
                    return Ok(exit);
                }
                StreamEnd::Disconnected(status) if !self.should_retry(&status) => {
                    return Err(self.failure_of(status));
                }
                StreamEnd::Disconnected(_) => {
                    let wait = backoff.next_delay();
                    if !notified && wait > NOTICE_DELAY && self.started.borrow().is_some() {
                        notice!("podling: connection lost, reconnecting …");
                        notified = true;
                    }
                    sleep(wait).await;
                }
            }
        }
    }

    /// Starts the command, or resumes its output at the current positions.
    async fn open(&self) -> Result<Streaming<ProcessEvent>, Status> {
        let started = self.started.borrow().clone();
        let mut processes = self.workspace_client.processes();
        let answer = match started {
            // If an earlier call started the process, the agent finds it by the request id.
            None => self.wake_spinner.show_during(processes.start(self.request.clone())).await,
            Some(started) => {
                let request = WatchProcessRequest {
                    process_id: started.process_id,
                    epoch: started.epoch,
                    stdout_offset: self.positions.stdout,
                    stderr_offset: self.positions.stderr,
                };
                processes.watch(request).await
            }
        };
        Ok(answer?.into_inner())
    }

    fn should_retry(&self, status: &Status) -> bool {
        should_retry(status, self.started.borrow().is_some(), self.since.elapsed())
    }

    async fn drain(&mut self, mut events: Streaming<ProcessEvent>) -> StreamEnd {
        loop {
            let event = match events.message().await {
                Ok(Some(event)) => event.event,
                Ok(None) => {
                    let status = Status::unavailable("the stream ended before the command");
                    return StreamEnd::Disconnected(status);
                }
                Err(status) => return StreamEnd::Disconnected(status),
            };
            match event {
                Some(process_event::Event::Started(started)) => {
                    if self.positions.epoch != started.epoch {
                        self.positions = OutputPositions::new(started.epoch);
                    }
                    let started = StartedProcess { process_id: started.process_id, epoch: started.epoch };
                    self.started.send_if_modified(|known| known.replace(started.clone()) != Some(started));
                }
                Some(process_event::Event::Stdout(output)) => {
                    self.write_output(OutputKind::Stdout, output).await
                }
                Some(process_event::Event::Stderr(output)) => {
                    self.write_output(OutputKind::Stderr, output).await
                }
                Some(process_event::Event::Gap(lost)) => {
                    let to = lost.gap.map_or(0, |gap| gap.to);
                    let which = if lost.stream() == OutputStream::Stderr {
                        OutputKind::Stderr
                    } else {
                        OutputKind::Stdout
                    };
                    report_missing(self.positions.gap(which, to));
                }
                Some(process_event::Event::Exit(exit)) => return StreamEnd::Exit(exit),
                Some(process_event::Event::Keepalive(_)) | None => {}
            }
        }
    }

    async fn write_output(&mut self, which: OutputKind, output: Output) {
        let fresh = self.positions.take(which, output.offset, output.data);
        report_missing(fresh.missing);
        if !self.output_health.is_ok() {
            return;
        }
        let (stdio, name) = match which {
            OutputKind::Stdout => (&self.stdout, "standard output"),
            OutputKind::Stderr => (&self.stderr, "standard error"),
        };
        if let Err(error) = stdio.write_all(&fresh.data).await {
            self.output_health.record(name, error);
        }
    }

    /// Returns the failure, with its exit code, for a command that cannot be started or followed.
    fn failure_of(&self, status: Status) -> CommandFailure {
        let has_started = self.started.borrow().is_some();
        let code = match error::reason(&status) {
            Some(Reason::ProgramNotFound) => failure::NO_COMMAND,
            Some(Reason::ProgramNotExecutable | Reason::ProgramBadInterpreter) => failure::CANNOT_RUN,
            // The command ended with the workspace's agent, and its exit was not received.
            Some(Reason::FellAsleep | Reason::NotAwake | Reason::Deleting) if has_started => {
                failure::FELL_ASLEEP
            }
            _ => failure::RUN_FAILED,
        };
        let is_gone = matches!(error::reason(&status), Some(Reason::ProcessNotFound | Reason::StaleEpoch));
        if has_started && is_gone {
            let message = "the command was ended by a restart of the workspace's agent; run it again";
            return CommandFailure::Other(message.to_owned()).with_code(code);
        }
        CommandFailure::from(status).with_code(code)
    }
}

/// Returns whether to reconnect. A command that has not started is retried only until
/// [`START_TIMEOUT`].
fn should_retry(status: &Status, has_started: bool, waited: Duration) -> bool {
    is_retryable(status) && (has_started || waited < START_TIMEOUT)
}

fn report_missing(bytes: u64) {
    if bytes > 0 {
        notice!("podling: {bytes} bytes of output were lost while the connection was broken");
    }
}

/// Renders that the workspace's sleep ended the command, and why. `None` if it did not.
fn describe_sleep(exit: &ProcessExit) -> Option<String> {
    let cause = Some(exit.sleep_cause()).filter(|cause| *cause != SleepCause::Unspecified)?;
    let how = match &exit.how {
        Some(How::Signal(name)) => format!("SIG{name}"),
        Some(How::Code(code)) => format!("exit code {code}"),
        None => "unknown status".to_owned(),
    };
    Some(format!("the workspace {}; that ended the command ({how})", text::fell_asleep(cause)))
}

/// Returns the exit code of this process for the end of a remote command.
pub fn exit_code(exit: &ProcessExit) -> u8 {
    match &exit.how {
        _ if exit.timed_out => failure::TIMED_OUT,
        _ if exit.sleep_cause() != SleepCause::Unspecified => failure::FELL_ASLEEP,
        Some(How::Code(code)) => u8::try_from(*code).unwrap_or(failure::ERROR),
        Some(How::Signal(name)) => signal::exit_code(name),
        None => failure::RUN_FAILED,
    }
}

/// Offsets in stdout and stderr of one process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputPositions {
    /// Epoch of the two logs.
    pub epoch: u64,
    /// Bytes of stdout that were written or are lost.
    pub stdout: u64,
    /// Bytes of stderr that were written or are lost.
    pub stderr: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputKind {
    Stdout,
    Stderr,
}

/// Output that is to be written, without the part that was written before.
#[derive(Debug, PartialEq, Eq)]
pub struct NewOutput {
    /// Number of bytes missing before `data`.
    pub missing: u64,
    /// Bytes to write; may be empty.
    pub data: Bytes,
}

impl OutputPositions {
    /// Starts both offsets at zero.
    pub fn new(epoch: u64) -> Self {
        Self { epoch, stdout: 0, stderr: 0 }
    }

    /// Adds output that begins at `offset`. Returns the part of it that is to be written.
    pub fn take(&mut self, kind: OutputKind, offset: u64, mut data: Bytes) -> NewOutput {
        let position = self.position(kind);
        let missing = offset.saturating_sub(*position);
        let repeated = usize::try_from(position.saturating_sub(offset)).unwrap_or(usize::MAX).min(data.len());
        data.advance(repeated);
        *position += missing + data.len() as u64;
        NewOutput { missing, data }
    }

    /// Skips the output before `to`, which is no longer available. Returns the number of bytes
    /// skipped.
    pub fn gap(&mut self, kind: OutputKind, to: u64) -> u64 {
        let position = self.position(kind);
        let missing = to.saturating_sub(*position);
        *position += missing;
        missing
    }

    fn position(&mut self, kind: OutputKind) -> &mut u64 {
        match kind {
            OutputKind::Stdout => &mut self.stdout,
            OutputKind::Stderr => &mut self.stderr,
        }
    }
}

/// Whether the local output can still be written. Clones share one state.
#[derive(Debug, Clone, Default)]
pub struct OutputHealth(watch::Sender<Option<OutputFailure>>);

/// Failure of the local standard output or error.
#[derive(Debug)]
enum OutputFailure {
    /// The reader of the pipe is gone.
    Closed,
    /// A write failed, for example because the disk is full.
    Failed {
        /// `standard output` or `standard error`.
        name: &'static str,
        error: io::Error,
    },
}

impl OutputHealth {
    /// Records the first failed write.
    fn record(&self, name: &'static str, error: io::Error) {
        let failure = match error.kind() {
            io::ErrorKind::BrokenPipe => OutputFailure::Closed,
            _ => OutputFailure::Failed { name, error },
        };
        self.0.send_modify(|first| *first = first.take().or(Some(failure)));
    }

    pub fn is_ok(&self) -> bool {
        self.0.borrow().is_none()
    }

    /// Waits for a failed write. Returns the name of the signal that ends the command.
    pub async fn failure_signal(&self) -> &'static str {
        match self.0.subscribe().wait_for(Option::is_some).await.as_deref() {
            Ok(Some(OutputFailure::Failed { .. })) => "TERM",
            _ => "PIPE",
        }
    }

    /// Returns the failure of this client if a write failed.
    pub fn into_failure(self) -> Option<CommandFailure> {
        match self.0.send_replace(None)? {
            OutputFailure::Closed => Some(CommandFailure::OutputClosed),
            OutputFailure::Failed { name, error } => {
                let doing = format!("cannot write to {name}, so the command was ended");
                Some(CommandFailure::io(doing)(error))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use podling_proto::error::WireError;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn disconnect_before_start_is_retried_until_timeout() {
        let starting = WireError::new(Reason::NotAwake, "starting").with("state", "starting");
        for cut in [Status::unknown("h2"), Status::cancelled("h2"), starting.into()] {
            assert!(should_retry(&cut, false, Duration::ZERO), "{cut}");
            assert!(!should_retry(&cut, false, START_TIMEOUT), "{cut}");
            assert!(should_retry(&cut, true, START_TIMEOUT), "{cut}");
        }
        let missing = Status::from(WireError::new(Reason::ProgramNotFound, "no such program"));
        assert!(!should_retry(&missing, false, Duration::ZERO));
    }

    #[test]
    fn process_exit_maps_to_shell_exit_code() {
        let exit = |how, timed_out| ProcessExit { how: Some(how), timed_out, ..ProcessExit::default() };
        let mut slept = exit(How::Signal("HUP".to_owned()), false);
        assert_eq!((exit_code(&slept), describe_sleep(&slept)), (129, None));
        slept.sleep_cause = SleepCause::MaxAwake.into();
        assert_eq!(exit_code(&slept), failure::FELL_ASLEEP);
        assert_eq!(
            describe_sleep(&slept).as_deref(),
            Some(
                "the workspace fell asleep, because it was awake for as long as its policy allows; that \
                 ended the command (SIGHUP)"
            )
        );
        assert_eq!(exit_code(&exit(How::Code(0), false)), 0);
        assert_eq!(exit_code(&exit(How::Code(42), false)), 42);
        assert_eq!(exit_code(&exit(How::Signal("KILL".to_owned()), false)), 137);
        assert_eq!(exit_code(&exit(How::Signal("TERM".to_owned()), true)), failure::TIMED_OUT);
    }

    #[test]
    fn stdout_and_stderr_have_separate_offsets() {
        let mut positions = OutputPositions::new(1);
        assert_eq!(positions.take(OutputKind::Stdout, 0, Bytes::from("out")).data, "out");
        assert_eq!(positions.take(OutputKind::Stderr, 0, Bytes::from("e")).data, "e");
        assert_eq!(positions, OutputPositions { epoch: 1, stdout: 3, stderr: 1 });
    }

    #[test]
    fn missing_output_is_counted_once() {
        let mut positions = OutputPositions::new(1);
        assert_eq!(positions.gap(OutputKind::Stdout, 10), 10);
        assert_eq!(positions.gap(OutputKind::Stdout, 10), 0);
        assert_eq!(
            positions.take(OutputKind::Stdout, 12, Bytes::from("x")),
            NewOutput { missing: 2, data: Bytes::from("x") }
        );
    }

    proptest! {
        #[test]
        fn output_is_written_once_across_disconnects(
            log in prop::collection::vec(any::<u8>(), 0..300),
            // Per connection: bytes repeated, bytes carried, and chunk size.
            connections in prop::collection::vec((0_usize..50, 0_usize..100, 1_usize..40), 0..12)
        ) {
            let mut positions = OutputPositions::new(1);
            let mut passed_on = Vec::new();
            for (back, carries, piece) in connections.into_iter().chain([(0, log.len(), 7)]) {
                let from = passed_on.len().saturating_sub(back);
                let to = (from + carries).min(log.len());
                let mut offset = from;
                for data in log[from..to].chunks(piece) {
                    let bytes = Bytes::copy_from_slice(data);
                    let output = positions.take(OutputKind::Stdout, offset as u64, bytes);
                    prop_assert_eq!(output.missing, 0);
                    passed_on.extend_from_slice(&output.data);
                    offset += data.len();
                }
            }
            prop_assert_eq!(passed_on, log);
        }
    }

    #[tokio::test]
    async fn first_failed_write_decides() {
        let health = OutputHealth::default();
        assert!(health.is_ok() && health.clone().into_failure().is_none());
        health.record("standard output", io::ErrorKind::StorageFull.into());
        health.record("standard error", io::ErrorKind::BrokenPipe.into());
        assert_eq!(health.failure_signal().await, "TERM");
        let failure = health.into_failure().expect("a failure").describe();
        assert!(
            failure.starts_with("cannot write to standard output, so the command was ended: "),
            "{failure}"
        );
    }
}
