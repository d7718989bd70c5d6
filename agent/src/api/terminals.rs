//! gRPC service `podling.agent.v1.Terminals`. `terminals.proto` defines the meaning of each
//! message.
//!
//! Attach has two directions. One task, the pump, passes requests to the terminal, while the client
//! reads the response stream.

mod convert;
#[cfg(test)]
mod tests;

use std::{pin::Pin, time::Duration};

use futures_util::{Stream, StreamExt, stream};
use podling_proto::{
    agent::v1::{self as pb, terminals_server},
    error::WireError,
};
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status, Streaming};

use self::convert::{
    attached, bad, begin, cells, client, credit, exit, input, size, status, target, terminal, watched,
};
use crate::{
    spawn::Program,
    terminal::{
        Attachment, AttachmentWriter, ClientId, CreateTerminal, DEFAULT_GRACE, InputQueue, TerminalError,
        TerminalId, Terminals, ViewerOptions,
    },
};

/// Longest grace period of a Close, in seconds.
const GRACE_SECONDS: u32 = 60;

#[derive(Debug, Clone)]
pub struct TerminalsService {
    terminals: Terminals,
}

impl TerminalsService {
    pub fn new(terminals: Terminals) -> Self {
        Self { terminals }
    }
}

type TerminalStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl terminals_server::Terminals for TerminalsService {
    type AttachStream = TerminalStream<pb::AttachResponse>;
    type WatchStream = TerminalStream<pb::WatchTerminalsResponse>;

    async fn create(
        &self,
        request: Request<pb::CreateTerminalRequest>,
    ) -> Result<Response<pb::CreateTerminalResponse>, Status> {
        let request = request.into_inner();
        let create = CreateTerminal {
            program: Program { argv: request.argv, env: request.env, cwd: request.cwd },
            size: size(request.size)?.unwrap_or_default(),
            name: request.name,
            request_id: request.request_id,
        };
        let info = self.terminals.create(create).await.map_err(status)?;
        Ok(Response::new(pb::CreateTerminalResponse { terminal: Some(terminal(info)) }))
    }

    async fn list(
        &self,
        _request: Request<pb::ListTerminalsRequest>,
    ) -> Result<Response<pb::ListTerminalsResponse>, Status> {
        let terminals = self.terminals.list().into_iter().map(terminal).collect();
        Ok(Response::new(pb::ListTerminalsResponse { terminals }))
    }

    async fn get(
        &self,
        request: Request<pb::GetTerminalRequest>,
    ) -> Result<Response<pb::GetTerminalResponse>, Status> {
        let info = self.terminals.get(&TerminalId::new(&request.into_inner().terminal_id)).map_err(status)?;
        Ok(Response::new(pb::GetTerminalResponse { terminal: Some(terminal(info)) }))
    }

    async fn attach(
        &self,
        request: Request<Streaming<pb::AttachRequest>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let mut requests = request.into_inner();
        let first = requests.message().await?.and_then(|first| first.request);
        let Some(pb::attach_request::Request::Open(open)) = first else {
            return Err(bad("open", "the first request of an Attach").into());
        };
        let attach = convert::attach(open)?;
        let attachment = self.terminals.attach(&attach).map_err(status)?;
        // The pump takes requests even while the client reads no responses, so a Ctrl-C gets
        // through a flood of output. Dropping the response stream ends the pump.
        let (ended, (failure_tx, failure_rx)) = (CancellationToken::new(), oneshot::channel());
        let pump = pump(attachment.writer(), requests);
        let cancelled = ended.clone();
        self.terminals.tasks().spawn(async move {
            if let Some(Err(problem)) = cancelled.run_until_cancelled(pump).await {
                // The receiver is gone if the response stream ended first.
                let _ = failure_tx.send(problem);
            }
        });
        Ok(Response::new(responses(attachment, failure_rx, ended.drop_guard())))
    }

    async fn watch(
        &self,
        request: Request<pb::WatchTerminalsRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let request = request.into_inner();
        let (client, credit) = (client(&request.client_id)?, credit(request.credit_bytes)?);
        let options = |watch: pb::WatchTerminal| {
            Ok(ViewerOptions {
                terminal: TerminalId::new(&watch.terminal_id),
                from: begin(watch.from)?,
                client: client.clone(),
                size: None,
                credit,
                lossless: request.lossless,
                // A browser sends its input by Write requests.
                read_only: false,
            })
        };
        let terminals: Vec<_> =
            request.terminals.into_iter().map(options).collect::<Result<_, WireError>>()?;
        let watch = self.terminals.watch(&terminals).map_err(status)?;
        let opened = pb::watch_terminals_response::Response::Opened(pb::WatchOpened {
            watch_id: watch.id().to_owned(),
        });
        let first = stream::iter([Ok(pb::WatchTerminalsResponse { response: Some(opened) })]);
        let rest = stream::unfold(watch, async |mut watch| {
            let event = watch.next().await?;
            Some((Ok(watched(event)), watch))
        });
        Ok(Response::new(Box::pin(first.chain(rest))))
    }

    async fn ack(&self, request: Request<pb::AckRequest>) -> Result<Response<pb::AckResponse>, Status> {
        let pb::AckRequest { watch_id, terminal_id, epoch, offset } = request.into_inner();
        self.terminals.ack(&watch_id, &TerminalId::new(&terminal_id), epoch, offset).map_err(status)?;
        Ok(Response::new(pb::AckResponse {}))
    }

    async fn write(
        &self,
        request: Request<pb::WriteTerminalRequest>,
    ) -> Result<Response<pb::WriteTerminalResponse>, Status> {
        let request = request.into_inner();
        let client = ClientId::new(&request.client_id).map_err(status)?;
        let piece = request.input.ok_or_else(|| bad("input", "set"))?;
        let id = TerminalId::new(&request.terminal_id);
        let next_offset = self.terminals.write(&id, &client, input(&piece)).await.map_err(status)?;
        Ok(Response::new(pb::WriteTerminalResponse { next_offset }))
    }

    async fn resize(
        &self,
        request: Request<pb::ResizeTerminalRequest>,
    ) -> Result<Response<pb::ResizeTerminalResponse>, Status> {
        let request = request.into_inner();
        let client = ClientId::new(&request.client_id).map_err(status)?;
        let resize = request.resize.unwrap_or_default();
        let new_size = size(resize.size)?.ok_or_else(|| bad("resize.size", "set"))?;
        let id = TerminalId::new(&request.terminal_id);
        let (now, owner) =
            self.terminals.resize(&id, &client, new_size, resize.take_ownership).map_err(status)?;
        Ok(Response::new(pb::ResizeTerminalResponse { size: Some(cells(now)), owner }))
    }

    async fn signal(
        &self,
        request: Request<pb::SignalTerminalRequest>,
    ) -> Result<Response<pb::SignalTerminalResponse>, Status> {
        let request = request.into_inner();
        let signal = request.signal.unwrap_or_default();
        let id = TerminalId::new(&request.terminal_id);
        self.terminals.signal(&id, &signal.signal, target(&signal)).map_err(status)?;
        Ok(Response::new(pb::SignalTerminalResponse {}))
    }

    async fn close(
        &self,
        request: Request<pb::CloseTerminalRequest>,
    ) -> Result<Response<pb::CloseTerminalResponse>, Status> {
        let request = request.into_inner();
        let grace = match request.grace_seconds {
            0 => DEFAULT_GRACE,
            seconds @ 1..=GRACE_SECONDS => Duration::from_secs(seconds.into()),
            _ => return Err(bad("grace_seconds", "0 to 60").into()),
        };
        let ended =
            self.terminals.close(&TerminalId::new(&request.terminal_id), grace).await.map_err(status)?;
        Ok(Response::new(pb::CloseTerminalResponse { exit: Some(exit(ended)) }))
    }
}

// === Attach ===

/// Handles requests until the client sends no more. An error ends the stream.
async fn pump(writer: AttachmentWriter, mut requests: Streaming<pb::AttachRequest>) -> Result<(), Status> {
    use pb::attach_request::Request as AttachCommand;
    let mut typing = InputQueue::new(writer.clone());
    loop {
        let request = tokio::select! {
            request = requests.message() => request?,
            () = typing.drain(), if typing.is_holding() => continue,
        };
        let Some(request) = request else { break };
        match request.request {
            Some(AttachCommand::Input(piece)) => typing.input(input(&piece)),
            Some(AttachCommand::Resize(resize)) => {
                let size_request = size(resize.size)?.ok_or_else(|| bad("resize.size", "set"))?;
                unless_ended(writer.resize(size_request, resize.take_ownership))?;
            }
            Some(AttachCommand::Ack(offset)) => writer.ack(offset),
            Some(AttachCommand::Signal(signal)) => {
                unless_ended(writer.signal(&signal.signal, target(&signal)))?
            }
            Some(AttachCommand::Open(_)) => return Err(bad("open", "the first request only").into()),
            // A request kind of a newer client.
            None => {}
        }
    }
    typing.drain().await;
    Ok(())
}

/// Ignores the error that the terminal has ended, because the response stream delivers the exit.
fn unless_ended(done: Result<(), TerminalError>) -> Result<(), Status> {
    match done {
        Err(TerminalError::TerminalEnded(_)) => Ok(()),
        done => done.map_err(status),
    }
}

/// Returns the stream of the terminal's events. It ends when the terminal has ended, or with the
/// error of a failed request. Dropping the stream stops the pump.
fn responses(
    attachment: Attachment,
    failed: oneshot::Receiver<Status>,
    ended: DropGuard,
) -> TerminalStream<pb::AttachResponse> {
    let first = Some((attachment, Some(failed), ended));
    Box::pin(stream::unfold(first, async |open| {
        let (mut attachment, mut failed, ended) = open?;
        let problem = async {
            match &mut failed {
                // The pump drops the sender without an error when the client sends no more
                // requests. The client may still read.
                Some(failed) => match failed.await {
                    Ok(problem) => problem,
                    Err(_) => std::future::pending().await,
                },
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = attachment.next() => {
                let response = attached(event?);
                // A receiver that has delivered its value must not be polled again.
                let failed = failed.filter(|failed| !failed.is_terminated());
                Some((Ok(response), Some((attachment, failed, ended))))
            }
            problem = problem => Some((Err(problem), None)),
        }
    }))
}
