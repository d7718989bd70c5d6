//! Starts a remote command, follows it to its end across broken connections, and writes its stdout
//! and stderr locally.
//!
//! Output that a new connection repeats is dropped, and output that is missing is counted. If a write
//! to the local output fails, the command is ended, like a local command whose writes fail.

use std::{io, os::fd::AsFd, time::Duration};

use bytes::{Buf as _, Bytes};
use podling_proto::{
    agent::v1::{
        Output, OutputStream, ProcessEvent, ProcessExit, SignalProcessRequest, SleepCause,
        StartProcessRequest, WatchProcessRequest, process_event, process_exit::How,
    },
    error::{self, Reason},
    text,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
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
/// How long the agent may take to deliver a signal.
const SIGNAL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a command may take to exit after a failed write of its output, before the next signal.
const OUTPUT_GRACE: Duration = Duration::from_secs(2);
/// Retry delay above which a lost connection is reported to the user.
const NOTICE_DELAY: Duration = Duration::from_millis(500);

/// A process that the agent has started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartedProcess {
    pub process_id: String,
    /// Epoch of the process's output logs.
    pub epoch: u64,
}

impl StartedProcess {
    /// Sends a signal. Returns whether it was delivered, or the process has already ended.
    pub async fn signal(&self, workspace_client: &WorkspaceClient, name: &str) -> bool {
        let request = SignalProcessRequest { process_id: self.process_id.clone(), signal: name.to_owned() };
        match timeout(SIGNAL_TIMEOUT, workspace_client.processes().signal(request)).await {
            Ok(Ok(_)) => true,
            Ok(Err(status)) if has_ended(&status) => true,
            Ok(Err(status)) => {
                notice!("podling: cannot forward SIG{name}: {}", CommandFailure::from(status).describe());
                false
            }
            Err(_) => false,
        }
    }
}

/// Returns whether the error means that the command has ended. The follower reports its exit code.
pub fn has_ended(status: &Status) -> bool {
    matches!(error::reason(status), Some(Reason::Ended | Reason::ProcessNotFound | Reason::StaleEpoch))
}

/// Starts one command and follows it.
#[derive(Debug)]
pub struct CommandFollower {
    workspace_client: WorkspaceClient,
    wake_spinner: WakeSpinner,
    request: StartProcessRequest,
    started: watch::Sender<Option<StartedProcess>>,
    stdout: LocalOutput,
    stderr: LocalOutput,
    since: Instant,
}

/// Why an event stream ended.
enum StreamEnd {
    Exit(ProcessExit),
    Disconnected(Status),
    /// The local output cannot be written.
    OutputFailed(OutputFailure),
}

impl CommandFollower {
    /// Creates a follower of the command in `request`. The follower sends to `started` once the
    /// process runs.
    pub fn new(
        workspace_client: WorkspaceClient,
        wake_spinner: WakeSpinner,
        request: StartProcessRequest,
        started: watch::Sender<Option<StartedProcess>>,
    ) -> io::Result<Self> {
        let stdout = LocalOutput::new(io::stdout(), "standard output")?;
        let stderr = LocalOutput::new(io::stderr(), "standard error")?;
        Ok(Self { workspace_client, wake_spinner, request, started, stdout, stderr, since: Instant::now() })
    }

    /// Follows the command to its end. Returns its exit.
    pub async fn follow(mut self) -> Result<ProcessExit, CommandFailure> {
        let failure = match self.follow_output().await? {
            Ok(exit) => return Ok(exit),
            Err(failure) => failure,
        };
        for output in [&mut self.stdout, &mut self.stderr] {
            output.stdio = None;
        }
        self.end_command(failure.signal()).await;
        Err(failure.into())
    }

    /// Ends a command whose output cannot be written. Sends the signal that a local command would
    /// get, then TERM and then KILL, each after [`OUTPUT_GRACE`]. Returns once the command has ended,
    /// KILL was sent, or no signal can be delivered.
    async fn end_command(&mut self, first: &str) {
        let Some(process) = self.started.borrow().clone() else { return };
        for signal in [first, "TERM", "KILL"] {
            if !process.signal(&self.workspace_client, signal).await
                || timeout(OUTPUT_GRACE, self.follow_output()).await.is_ok()
            {
                return;
            }
        }
    }

    /// Follows the command until its end, or until its output cannot be written.
    async fn follow_output(&mut self) -> Result<Result<ProcessExit, OutputFailure>, CommandFailure> {
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
                    return Ok(Ok(exit));
                }
                StreamEnd::OutputFailed(failure) => return Ok(Err(failure)),
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
                    stdout_offset: self.stdout.position,
                    stderr_offset: self.stderr.position,
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
            let written = match event {
                Some(process_event::Event::Started(started)) => {
                    self.handle_started(StartedProcess {
                        process_id: started.process_id,
                        epoch: started.epoch,
                    });
                    Ok(())
                }
                Some(process_event::Event::Stdout(output)) => self.stdout.write(output).await,
                Some(process_event::Event::Stderr(output)) => self.stderr.write(output).await,
                Some(process_event::Event::Gap(lost)) => {
                    let output = match lost.stream() {
                        OutputStream::Stderr => &mut self.stderr,
                        _ => &mut self.stdout,
                    };
                    report_missing(output.skip_to(lost.gap.map_or(0, |gap| gap.to)));
                    Ok(())
                }
                Some(process_event::Event::Exit(exit)) => return StreamEnd::Exit(exit),
                Some(process_event::Event::Keepalive(_)) | None => Ok(()),
            };
            if let Err(failure) = written {
                return StreamEnd::OutputFailed(failure);
            }
        }
    }

    fn handle_started(&mut self, started: StartedProcess) {
        let known = self.started.borrow().as_ref().map(|known| known.epoch);
        if known != Some(started.epoch) {
            (self.stdout.position, self.stderr.position) = (0, 0);
        }
        self.started.send_if_modified(|known| known.replace(started.clone()) != Some(started));
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

/// Standard output or error, to which the command's is written.
#[derive(Debug)]
struct LocalOutput {
    /// `None` drops all output.
    stdio: Option<AsyncStdio>,
    name: &'static str,
    /// Bytes of the command's output that were written or are lost.
    position: u64,
}

impl LocalOutput {
    fn new(fd: impl AsFd, name: &'static str) -> io::Result<Self> {
        Ok(Self { stdio: Some(AsyncStdio::writing(fd)?), name, position: 0 })
    }

    /// Writes the part of the output that was not written before.
    async fn write(&mut self, output: Output) -> Result<(), OutputFailure> {
        let (missing, data) = self.take(output.offset, output.data);
        report_missing(missing);
        let Some(stdio) = &self.stdio else { return Ok(()) };
        stdio.write_all(&data).await.map_err(|error| OutputFailure { name: self.name, error })
    }

    /// Adds output that begins at `offset`. Returns the number of bytes missing before it, and the
    /// part of it that is to be written.
    fn take(&mut self, offset: u64, mut data: Bytes) -> (u64, Bytes) {
        let repeated =
            usize::try_from(self.position.saturating_sub(offset)).unwrap_or(usize::MAX).min(data.len());
        data.advance(repeated);
        let missing = self.skip_to(offset);
        self.position += data.len() as u64;
        (missing, data)
    }

    /// Skips the output before `to`, which is no longer available. Returns the number of bytes
    /// skipped.
    fn skip_to(&mut self, to: u64) -> u64 {
        let missing = to.saturating_sub(self.position);
        self.position += missing;
        missing
    }
}

/// A failed write to the local standard output or error.
#[derive(Debug)]
struct OutputFailure {
    /// `standard output` or `standard error`.
    name: &'static str,
    error: io::Error,
}

impl OutputFailure {
    /// Returns the name of the signal that a local command would get.
    fn signal(&self) -> &'static str {
        if self.error.kind() == io::ErrorKind::BrokenPipe { "PIPE" } else { "TERM" }
    }
}

impl From<OutputFailure> for CommandFailure {
    fn from(OutputFailure { name, error }: OutputFailure) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Self::io(format!("cannot write to {name}, so the command was ended"))(error),
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
    fn only_errors_of_an_ended_command_are_ignored() {
        let of = |reason| Status::from(WireError::new(reason, "no"));
        for over in [Reason::Ended, Reason::ProcessNotFound, Reason::StaleEpoch] {
            assert!(has_ended(&of(over)), "{over:?}");
        }
        for refused in [Reason::TokenExpired, Reason::TooManyStreams, Reason::Io, Reason::VerbMissing] {
            assert!(!has_ended(&of(refused)), "{refused:?}: the command still runs");
        }
        assert!(!has_ended(&Status::cancelled("disconnected")));
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

    fn output() -> LocalOutput {
        LocalOutput { stdio: None, name: "standard output", position: 0 }
    }

    #[test]
    fn missing_output_is_counted_once() {
        let mut output = output();
        assert_eq!(output.skip_to(10), 10);
        assert_eq!(output.skip_to(10), 0);
        assert_eq!(output.take(12, Bytes::from("x")), (2, Bytes::from("x")));
    }

    proptest! {
        #[test]
        fn output_is_written_once_across_disconnects(
            log in prop::collection::vec(any::<u8>(), 0..300),
            // Per connection: bytes repeated, bytes carried, and chunk size.
            connections in prop::collection::vec((0_usize..50, 0_usize..100, 1_usize..40), 0..12)
        ) {
            let mut output = output();
            let mut passed_on = Vec::new();
            for (back, carries, piece) in connections.into_iter().chain([(0, log.len(), 7)]) {
                let from = passed_on.len().saturating_sub(back);
                let to = (from + carries).min(log.len());
                let mut offset = from;
                for data in log[from..to].chunks(piece) {
                    let bytes = Bytes::copy_from_slice(data);
                    let (missing, fresh) = output.take(offset as u64, bytes);
                    prop_assert_eq!(missing, 0);
                    passed_on.extend_from_slice(&fresh);
                    offset += data.len();
                }
            }
            prop_assert_eq!(passed_on, log);
        }
    }

    #[tokio::test]
    async fn failed_write_decides_signal_and_failure() {
        let full = OutputFailure { name: "standard output", error: io::ErrorKind::StorageFull.into() };
        assert_eq!(full.signal(), "TERM");
        let failure = CommandFailure::from(full).describe();
        assert!(
            failure.starts_with("cannot write to standard output, so the command was ended: "),
            "{failure}"
        );
        let (reader, writer) = io::pipe().expect("a pipe");
        drop(reader);
        let mut closed = LocalOutput::new(writer, "standard error").expect("an output");
        let data = Output { data: Bytes::from("x"), ..Output::default() };
        let closed = closed.write(data.clone()).await.expect_err("no reader");
        assert_eq!(
            (closed.signal(), CommandFailure::from(closed).exit_code()),
            ("PIPE", failure::OUTPUT_CLOSED)
        );
        output().write(data).await.expect("dropped");
    }
}
