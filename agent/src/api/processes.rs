//! gRPC service `podling.agent.v1.Processes`.

use std::{pin::Pin, time::Duration};

use futures_util::{Stream, StreamExt, stream};
use podling_proto::{
    agent::v1::{self as wire, process_event, process_exit, processes_server},
    error::{Reason, WireError},
};
use tonic::{Request, Response, Status};

use super::{bad_field, exit_word, sized};
use crate::{
    child::{ExitStatus, signals},
    process::{
        OutputStream, ProcessError, ProcessEvent, ProcessExit, ProcessId, ProcessInfo, ProcessRegistry,
        ProcessSpec, ProcessWatcher, RunOutcome, RunSpec, StdinProgress,
    },
    spawn::Program,
};

#[derive(Debug, Clone)]
pub struct ProcessesService {
    processes: ProcessRegistry,
}

impl ProcessesService {
    pub fn new(processes: ProcessRegistry) -> Self {
        Self { processes }
    }
}

type ProcessReply<T> = Result<Response<T>, Status>;
type ProcessEventStream = Pin<Box<dyn Stream<Item = Result<wire::ProcessEvent, Status>> + Send>>;

#[tonic::async_trait]
impl processes_server::Processes for ProcessesService {
    type StartStream = ProcessEventStream;

    async fn start(&self, request: Request<wire::StartProcessRequest>) -> ProcessReply<Self::StartStream> {
        let request = request.into_inner();
        let (program, timeout) = command(request.command)?;
        let start = ProcessSpec { program, timeout, stdin: request.stdin, request_id: request.request_id };
        Ok(Response::new(events(self.processes.start(start).await.map_err(status)?)))
    }

    type WatchStream = ProcessEventStream;

    async fn watch(&self, request: Request<wire::WatchProcessRequest>) -> ProcessReply<Self::WatchStream> {
        let request = request.into_inner();
        let at = [request.stdout_offset, request.stderr_offset];
        let watcher = self.processes.watch(&request.process_id.into(), request.epoch, at);
        Ok(Response::new(events(watcher.map_err(status)?)))
    }

    async fn write(
        &self,
        request: Request<wire::WriteProcessRequest>,
    ) -> ProcessReply<wire::WriteProcessResponse> {
        let wire::WriteProcessRequest { process_id, epoch, offset, data, end, until_read } =
            request.into_inner();
        let data = sized(data)?;
        let id = ProcessId::from(process_id);
        let StdinProgress { next, mut closed } =
            self.processes.write(&id, epoch, offset, data, end).await.map_err(status)?;
        if until_read && !closed {
            closed = self.processes.wait_until_stdin_read(&id, next).await.map_err(status)?;
        }
        Ok(Response::new(wire::WriteProcessResponse { next_offset: next, closed }))
    }

    async fn signal(
        &self,
        request: Request<wire::SignalProcessRequest>,
    ) -> ProcessReply<wire::SignalProcessResponse> {
        let request = request.into_inner();
        self.processes.signal(&request.process_id.into(), &request.signal).map_err(status)?;
        Ok(Response::new(wire::SignalProcessResponse {}))
    }

    async fn list(
        &self,
        _: Request<wire::ListProcessesRequest>,
    ) -> ProcessReply<wire::ListProcessesResponse> {
        let processes = self.processes.list().into_iter().map(wire::Process::from).collect();
        Ok(Response::new(wire::ListProcessesResponse { processes }))
    }

    async fn run(&self, request: Request<wire::RunRequest>) -> ProcessReply<wire::RunResponse> {
        let request = request.into_inner();
        let (program, timeout) = command(request.command)?;
        let max_output = usize::try_from(request.max_output_bytes).unwrap_or(usize::MAX);
        let run = RunSpec { program, timeout, stdin: request.stdin.into(), max_output };
        let RunOutcome { outputs: [stdout, stderr], exit, truncated } =
            self.processes.run(run).await.map_err(status)?;
        Ok(Response::new(wire::RunResponse { stdout, stderr, exit: Some(exit.into()), truncated }))
    }
}

// === in ===

fn command(command: Option<wire::Command>) -> Result<(Program, Option<Duration>), Status> {
    let wire::Command { argv, env, cwd, timeout } = command.ok_or_else(|| bad_field("command", "set"))?;
    let timeout = timeout.map(Duration::try_from).transpose();
    let timeout = timeout.map_err(|_| bad_field("timeout", "a duration of at least 0"))?;
    Ok((Program { argv, env, cwd }, timeout))
}

// === out ===

fn events(watcher: ProcessWatcher) -> ProcessEventStream {
    stream::try_unfold(watcher, |mut watcher| async move {
        let event = watcher.next().await.map_err(status)?;
        Ok(event.map(|event| (event.into(), watcher)))
    })
    .boxed()
}

impl From<ProcessEvent> for wire::ProcessEvent {
    fn from(event: ProcessEvent) -> Self {
        let event = match event {
            ProcessEvent::Started { id, epoch, pid, stdin } => {
                let id = id.to_string();
                process_event::Event::Started(wire::ProcessStarted {
                    process_id: id,
                    epoch,
                    pid,
                    stdin_offset: stdin,
                })
            }
            ProcessEvent::Output { stream, epoch, offset, data } => {
                let output = wire::Output { epoch, offset, data };
                match stream {
                    OutputStream::Stdout => process_event::Event::Stdout(output),
                    OutputStream::Stderr => process_event::Event::Stderr(output),
                }
            }
            ProcessEvent::Gap { stream, from, to } => {
                let stream = match stream {
                    OutputStream::Stdout => wire::OutputStream::Stdout,
                    OutputStream::Stderr => wire::OutputStream::Stderr,
                };
                let gap = wire::OutputGap { stream: stream.into(), gap: Some(wire::Gap { from, to }) };
                process_event::Event::Gap(gap)
            }
            ProcessEvent::Exit(exit) => process_event::Event::Exit(exit.into()),
            ProcessEvent::KeepAlive => process_event::Event::Keepalive(wire::KeepAlive {}),
        };
        Self { event: Some(event) }
    }
}

impl From<ProcessExit> for wire::ProcessExit {
    fn from(exit: ProcessExit) -> Self {
        let how = match exit.status {
            ExitStatus::Code(code) => process_exit::How::Code(code),
            ExitStatus::Signal(signal) => process_exit::How::Signal(signals::name(signal)),
        };
        let [stdout_final, stderr_final] = exit.final_offsets;
        Self {
            how: Some(how),
            stdout_final,
            stderr_final,
            timed_out: exit.timed_out,
            at: Some(exit.ended_at.into()),
            held_by_background: exit.held_by_background,
            stdin_read: exit.stdin_read,
            sleep_cause: exit.sleep_cause.map_or(0, Into::into),
        }
    }
}

impl From<ProcessInfo> for wire::Process {
    fn from(info: ProcessInfo) -> Self {
        let command = wire::Command {
            argv: info.argv,
            // Variables that a client added may be secret. A caller that may list processes must
            // not see them.
            env: Default::default(),
            cwd: info.cwd,
            timeout: info.timeout.and_then(|timeout| timeout.try_into().ok()),
        };
        Self {
            id: info.id.to_string(),
            epoch: info.epoch,
            command: Some(command),
            pid: info.pid,
            started: Some(info.started.into()),
            exit: info.exit.map(Into::into),
        }
    }
}

fn status(error: ProcessError) -> Status {
    WireError::from(error).into()
}

impl From<ProcessError> for WireError {
    fn from(error: ProcessError) -> Self {
        let message = error.to_string();
        let of = |reason| Self::new(reason, message);
        match error {
            ProcessError::BadField { field, allowed } => {
                of(Reason::BadField).with("field", field).with("allowed", allowed)
            }
            ProcessError::NotFound(id) => of(Reason::ProcessNotFound).with("id", id),
            ProcessError::Spawn(error) => Self::from(&error),
            ProcessError::StaleEpoch { epoch } => of(Reason::StaleEpoch).with("epoch", epoch),
            ProcessError::BadOffset { stream, next } => {
                of(Reason::BadOffset).with("stream", stream).with("next", next)
            }
            ProcessError::InputGap { expected } => of(Reason::InputGap).with("expected_offset", expected),
            ProcessError::Ended { exit } => {
                of(Reason::Ended).with("exit", exit.map(exit_word).unwrap_or_default())
            }
            ProcessError::TooManyProcesses { limit } => {
                of(Reason::TooManyProcesses).with("what", "processes").with("limit", limit)
            }
            ProcessError::TooManyStreams { limit } => {
                of(Reason::TooManyStreams).with("what", "streams of processes").with("limit", limit)
            }
            ProcessError::TooLarge { what, limit } => {
                of(Reason::TooLarge).with("what", what).with("limit", limit)
            }
            ProcessError::Rejected(rejection) => rejection.into(),
            ProcessError::ShuttingDown => of(Reason::ShuttingDown),
            ProcessError::Fault => of(Reason::Internal).with("operation", "running a process"),
        }
    }
}
