//! Follows a command to its end: passes its two outputs on, over as many links as it takes.

use std::{cell::Cell, io, rc::Rc, time::Duration};

use podling_proto::{
    agent::v1::{
        Output, OutputStream, ProcessEvent, ProcessExit, StartProcessRequest, WatchProcessRequest,
        process_event, process_exit::How,
    },
    error::{self, Reason},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tonic::{Status, Streaming};

use super::tally::{Tally, Which};
use crate::{
    backoff::{Backoff, is_broken_link},
    client::Inside,
    failure::{self, Failure},
    signal,
    stdio::Stdio,
    waiting::Waiting,
};

/// How long a command may take to start while the link breaks or the other side says "not now".
const START_PATIENCE: Duration = Duration::from_secs(30);
/// A link that is back sooner than this is not worth a word.
const UNTOLD: Duration = Duration::from_millis(500);

/// A command that has started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// Names it.
    pub process_id: String,
    /// The life of its logs.
    pub epoch: u64,
}

/// Follows one command.
#[derive(Debug)]
pub struct Follower {
    inside: Inside,
    waiting: Waiting,
    request: StartProcessRequest,
    started: watch::Sender<Option<Started>>,
    tally: Tally,
    stdout: Stdio,
    stderr: Stdio,
    /// Nobody reads our output any more: what comes is dropped.
    deaf: Rc<Cell<bool>>,
    since: Instant,
}

/// How a stream of events ended.
enum Ended {
    Exit(ProcessExit),
    Link(Status),
}

impl Follower {
    /// Follows what `request` starts; tells `started` when it runs and `deaf` when nobody reads our output any more.
    pub fn new(
        inside: Inside,
        waiting: Waiting,
        request: StartProcessRequest,
        started: watch::Sender<Option<Started>>,
        deaf: Rc<Cell<bool>>,
    ) -> io::Result<Self> {
        let (stdout, stderr) = (Stdio::stdout()?, Stdio::stderr()?);
        Ok(Self {
            inside,
            waiting,
            request,
            started,
            tally: Tally::new(0),
            stdout,
            stderr,
            deaf,
            since: Instant::now(),
        })
    }

    /// To the end; answers with the exit code to pass on.
    pub async fn follow(mut self) -> Result<u8, Failure> {
        let mut backoff = Backoff::default();
        let mut told = false;
        loop {
            let ended = match self.open().await {
                Ok(events) => {
                    backoff.reset();
                    if std::mem::take(&mut told) {
                        eprintln!("podling: the link is back");
                    }
                    self.drain(events).await?
                }
                Err(status) => Ended::Link(status),
            };
            match ended {
                Ended::Exit(exit) => return Ok(exit_code(&exit)),
                Ended::Link(status) if !self.worth_another_try(&status) => return Err(self.lost(status)),
                Ended::Link(_) => {
                    let wait = backoff.step();
                    if !told && wait > UNTOLD && self.started.borrow().is_some() {
                        eprintln!("podling: the link is lost, trying again …");
                        told = true;
                    }
                    sleep(wait).await;
                }
            }
        }
    }

    /// Starts the command, or goes on with it from where we are.
    async fn open(&self) -> Result<Streaming<ProcessEvent>, Status> {
        let started = self.started.borrow().clone();
        let mut processes = self.inside.processes();
        let answer = match started {
            // Starting it again with the same request id finds what the first call started.
            None => self.waiting.beside(processes.start(self.request.clone())).await,
            Some(started) => {
                let request = WatchProcessRequest {
                    process_id: started.process_id,
                    epoch: started.epoch,
                    stdout_offset: self.tally.stdout,
                    stderr_offset: self.tally.stderr,
                };
                processes.watch(request).await
            }
        };
        Ok(answer?.into_inner())
    }

    fn worth_another_try(&self, status: &Status) -> bool {
        worth_another_try(status, self.started.borrow().is_some(), self.since.elapsed())
    }

    async fn drain(&mut self, mut events: Streaming<ProcessEvent>) -> Result<Ended, Failure> {
        loop {
            let event = match events.message().await {
                Ok(Some(event)) => event.event,
                Ok(None) => {
                    return Ok(Ended::Link(Status::unavailable("the stream ended before the command")));
                }
                Err(status) => return Ok(Ended::Link(status)),
            };
            match event {
                Some(process_event::Event::Started(started)) => {
                    if self.tally.epoch != started.epoch {
                        self.tally = Tally::new(started.epoch);
                    }
                    let started = Started { process_id: started.process_id, epoch: started.epoch };
                    self.started.send_if_modified(|known| known.replace(started.clone()) != Some(started));
                }
                Some(process_event::Event::Stdout(output)) => self.pass_on(Which::Out, output).await?,
                Some(process_event::Event::Stderr(output)) => self.pass_on(Which::Err, output).await?,
                Some(process_event::Event::Gap(lost)) => {
                    let to = lost.gap.map_or(0, |gap| gap.to);
                    let which = if lost.stream() == OutputStream::Stderr { Which::Err } else { Which::Out };
                    say_missing(self.tally.gap(which, to));
                }
                Some(process_event::Event::Exit(exit)) => return Ok(Ended::Exit(exit)),
                Some(process_event::Event::Keepalive(_)) | None => {}
            }
        }
    }

    async fn pass_on(&mut self, which: Which, output: Output) -> Result<(), Failure> {
        let fresh = self.tally.take(which, output.offset, output.data);
        say_missing(fresh.missing);
        if self.deaf.get() {
            return Ok(());
        }
        let (stdio, name) = match which {
            Which::Out => (&self.stdout, "standard output"),
            Which::Err => (&self.stderr, "standard error"),
        };
        match stdio.write_all(&fresh.data).await {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.deaf.set(true);
                // Wakes whoever ends the command.
                self.started.send_modify(|_| {});
                Ok(())
            }
            result => result.map_err(Failure::io(format!("cannot write to {name}"))),
        }
    }

    /// Why there is nothing more to follow.
    fn lost(&self, status: Status) -> Failure {
        let code = match error::reason(&status) {
            Some(Reason::ProgramNotFound) => failure::NO_COMMAND,
            Some(Reason::ProgramNotExecutable | Reason::ProgramBadInterpreter) => failure::CANNOT_RUN,
            _ => failure::RUN_FAILED,
        };
        let gone = matches!(error::reason(&status), Some(Reason::ProcessNotFound | Reason::StaleEpoch));
        if self.started.borrow().is_some() && gone {
            let words = "the workspace's agent was started again: the command ended with the earlier one";
            return Failure::Other(words.to_owned()).with_code(code);
        }
        Failure::from(status).with_code(code)
    }
}

/// Whether to try again after `waited`. Until it has started somebody waits for that, and is told when it takes too long.
fn worth_another_try(status: &Status, has_started: bool, waited: Duration) -> bool {
    is_broken_link(status) && (has_started || waited < START_PATIENCE)
}

fn say_missing(bytes: u64) {
    if bytes > 0 {
        eprintln!("podling: {bytes} bytes of output are lost: they came while nobody was connected");
    }
}

/// The exit code to pass on.
pub fn exit_code(exit: &ProcessExit) -> u8 {
    match &exit.how {
        _ if exit.timed_out => failure::TIMED_OUT,
        Some(How::Code(code)) => u8::try_from(*code).unwrap_or(failure::ERROR),
        Some(How::Signal(name)) => signal::exit_code(name),
        None => failure::RUN_FAILED,
    }
}

#[cfg(test)]
mod tests {
    use podling_proto::error::WireError;

    use super::*;

    #[test]
    fn a_link_that_breaks_before_the_command_has_started_is_tried_again_for_a_while() {
        let starting = WireError::new(Reason::NotAwake, "starting").with("state", "starting");
        for cut in [Status::unknown("h2"), Status::cancelled("h2"), starting.into()] {
            assert!(worth_another_try(&cut, false, Duration::ZERO), "{cut}");
            assert!(!worth_another_try(&cut, false, START_PATIENCE), "{cut}");
            assert!(worth_another_try(&cut, true, START_PATIENCE), "{cut}");
        }
        let missing = Status::from(WireError::new(Reason::ProgramNotFound, "no such program"));
        assert!(!worth_another_try(&missing, false, Duration::ZERO));
    }

    #[test]
    fn the_commands_end_is_passed_on_as_a_shell_would() {
        let exit = |how, timed_out| ProcessExit { how: Some(how), timed_out, ..ProcessExit::default() };
        assert_eq!(exit_code(&exit(How::Code(0), false)), 0);
        assert_eq!(exit_code(&exit(How::Code(42), false)), 42);
        assert_eq!(exit_code(&exit(How::Signal("KILL".to_owned()), false)), 137);
        assert_eq!(exit_code(&exit(How::Signal("TERM".to_owned()), true)), failure::TIMED_OUT);
    }
}
