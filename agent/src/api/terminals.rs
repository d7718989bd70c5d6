//! Terminals on the wire. Translates and nothing else; what the words mean is said in `terminals.proto`.

use std::{pin::Pin, time::Duration};

use futures_util::{Stream, StreamExt, stream};
use podling_proto::{
    agent::v1::{self as pb, terminals_server},
    error::{self, Reason, WireError},
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    child::{Ended, signals},
    spawn::Program,
    terminal::{
        Attach, Attachment, AttachmentEvent, ClientId, Create, DEFAULT_GRACE, Exit, Frame, FrameKind,
        From as Begin, Info, Input, InputKind, OpenError, SignalTarget, Size, TerminalError, TerminalId,
        Terminals, WatchEvent, WatchFrom, WatchManner, Writer,
    },
};

#[cfg(test)]
mod tests;

/// Credit that a client may ask for, in bytes.
const CREDIT: std::ops::RangeInclusive<u32> = 4 * 1024..=16 * 1024 * 1024;
/// Longest grace of a Close, in seconds.
const GRACE_SECONDS: u32 = 60;

/// The service.
#[derive(Debug, Clone)]
pub struct TerminalsApi {
    terminals: Terminals,
}

impl TerminalsApi {
    /// Serves these.
    pub fn new(terminals: Terminals) -> Self {
        Self { terminals }
    }
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl terminals_server::Terminals for TerminalsApi {
    type AttachStream = Responses<pb::AttachResponse>;
    type WatchStream = Responses<pb::WatchTerminalsResponse>;

    async fn create(
        &self,
        request: Request<pb::CreateTerminalRequest>,
    ) -> Result<Response<pb::CreateTerminalResponse>, Status> {
        let request = request.into_inner();
        let create = Create {
            program: Program { argv: request.argv, env: request.env, cwd: request.cwd },
            size: size(request.size)?.unwrap_or_default(),
            name: request.name,
            request_id: request.request_id,
        };
        let info = self.terminals.create(create).map_err(status)?;
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
        let attach = attach(open)?;
        let attachment = self.terminals.attach(&attach).map_err(status)?;
        // Requests are taken while nobody reads the responses: a Ctrl-C gets through a flood. Dropping the responses ends it.
        let (over, failed) = (CancellationToken::new(), tokio::sync::oneshot::channel());
        let (tell, told) = failed;
        let pump = pump(attachment.writer(), requests);
        let cancelled = over.clone();
        self.terminals.tasks().spawn(async move {
            if let Some(Err(problem)) = cancelled.run_until_cancelled(pump).await {
                // Nobody listens if the responses ended first.
                let _ = tell.send(problem);
            }
        });
        Ok(Response::new(attach_responses(attachment, told, over.drop_guard())))
    }

    async fn watch(
        &self,
        request: Request<pb::WatchTerminalsRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let request = request.into_inner();
        let manner = WatchManner {
            client: client(&request.client_id)?,
            credit: credit(request.credit_bytes)?,
            lossless: request.lossless,
        };
        let from = |watch: pb::WatchTerminal| {
            Ok(WatchFrom { terminal: TerminalId::new(&watch.terminal_id), from: begin(watch.from)? })
        };
        let terminals: Vec<_> = request.terminals.into_iter().map(from).collect::<Result<_, WireError>>()?;
        let watch = self.terminals.watch(&terminals, &manner).map_err(status)?;
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
        let piece = request.input.ok_or_else(|| bad("input", "must be given"))?;
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
        let wanted = size(resize.size)?.ok_or_else(|| bad("resize.size", "must be given"))?;
        let id = TerminalId::new(&request.terminal_id);
        let (now, owner) = self.terminals.resize(&id, &client, wanted, resize.take).map_err(status)?;
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

/// Takes requests until the client has no more; an error ends the stream.
async fn pump(writer: Writer, mut requests: Streaming<pb::AttachRequest>) -> Result<(), Status> {
    use pb::attach_request::Request as Asked;
    while let Some(request) = requests.message().await? {
        match request.request {
            Some(Asked::Input(piece)) => writer.input(input(&piece)),
            Some(Asked::Resize(resize)) => {
                let wanted = size(resize.size)?.ok_or_else(|| bad("resize.size", "must be given"))?;
                unless_ended(writer.resize(wanted, resize.take))?;
            }
            Some(Asked::Ack(offset)) => writer.ack(offset),
            Some(Asked::Signal(signal)) => unless_ended(writer.signal(&signal.signal, target(&signal)))?,
            Some(Asked::Open(_)) => return Err(bad("open", "only the first request").into()),
            // A kind that a newer client knows.
            None => {}
        }
    }
    Ok(())
}

/// What comes too late for a terminal that has ended is no error of the stream, which is about to say so.
fn unless_ended(done: Result<(), TerminalError>) -> Result<(), Status> {
    match done {
        Err(TerminalError::Ended(_)) => Ok(()),
        done => done.map_err(status),
    }
}

fn attach_responses(
    attachment: Attachment,
    failed: tokio::sync::oneshot::Receiver<Status>,
    over: tokio_util::sync::DropGuard,
) -> Responses<pb::AttachResponse> {
    let first = Some((attachment, Some(failed), over));
    Box::pin(stream::unfold(first, async |open| {
        let (mut attachment, mut failed, over) = open?;
        let problem = async {
            match &mut failed {
                // Without a problem its sender is dropped: the client has no more requests and goes on reading.
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
                // A receiver that has answered must not be asked again.
                let failed = failed.filter(|failed| !failed.is_terminated());
                Some((Ok(response), Some((attachment, failed, over))))
            }
            problem = problem => Some((Err(problem), None)),
        }
    }))
}

// === proto to domain ===

fn attach(open: pb::AttachOpen) -> Result<Attach, WireError> {
    let client = client(&open.client_id)?;
    if client.is_none() && !open.read_only {
        return Err(bad("client_id", "1 to 64 characters, unless read_only"));
    }
    Ok(Attach {
        terminal: TerminalId::new(&open.terminal_id),
        from: begin(open.from)?,
        client,
        size: size(open.size)?,
        credit: credit(open.credit_bytes)?,
        lossless: open.lossless,
        read_only: open.read_only,
    })
}

fn begin(from: Option<pb::From>) -> Result<Begin, WireError> {
    match from.and_then(|from| from.from) {
        Some(pb::from::From::Position(pb::Position { epoch, offset })) => {
            Ok(Begin::Position { epoch, offset })
        }
        Some(pb::from::From::Screen(_)) => Ok(Begin::Screen),
        Some(pb::from::From::Oldest(_)) => Ok(Begin::Oldest),
        Some(pb::from::From::Now(_)) => Ok(Begin::Now),
        None => Err(bad("from", "position, screen, oldest or now")),
    }
}

fn client(id: &str) -> Result<Option<ClientId>, WireError> {
    if id.is_empty() {
        return Ok(None);
    }
    Ok(Some(ClientId::new(id)?))
}

fn size(size: Option<pb::Size>) -> Result<Option<Size>, WireError> {
    match size {
        Some(size) => Ok(Some(Size::new(size.rows, size.cols)?)),
        None => Ok(None),
    }
}

fn credit(bytes: u32) -> Result<u64, WireError> {
    if bytes == 0 || CREDIT.contains(&bytes) {
        return Ok(bytes.into());
    }
    Err(bad("credit_bytes", "0, or 4 KiB to 16 MiB"))
}

fn input(input: &pb::Input) -> Input<'_> {
    let kind = match input.kind() {
        pb::InputKind::Reply => InputKind::Reply { at: input.reply_at },
        pb::InputKind::User | pb::InputKind::Unspecified => InputKind::User,
    };
    Input { epoch: input.epoch, offset: input.offset, data: &input.data, kind }
}

fn target(signal: &pb::SignalName) -> SignalTarget {
    if signal.session { SignalTarget::Session } else { SignalTarget::Foreground }
}

fn bad(field: &'static str, allowed: &'static str) -> WireError {
    TerminalError::BadField { field, allowed }.into()
}

// === domain to proto ===

fn terminal(info: Info) -> pb::Terminal {
    pb::Terminal {
        id: info.id.to_string(),
        name: info.name,
        argv: info.argv,
        size: Some(cells(info.size)),
        epoch: info.epoch,
        oldest: info.oldest,
        next: info.next,
        title: info.title,
        cwd: info.cwd,
        foreground: info.foreground,
        created: Some(info.created.into()),
        pid: info.pid.as_raw_nonzero().get().unsigned_abs(),
        exit: info.exit.map(exit),
        ring_bytes: info.ring_bytes as u64,
        viewers: info.viewers as u32,
    }
}

fn cells(size: Size) -> pb::Size {
    pb::Size { rows: size.rows.into(), cols: size.cols.into() }
}

fn exit(exit: Exit) -> pb::Exit {
    let how = match exit.how {
        Ended::Code(code) => pb::exit::How::Code(code),
        Ended::Signal(signal) => pb::exit::How::Signal(signals::name(signal)),
    };
    pb::Exit {
        how: Some(how),
        final_offset: exit.final_offset,
        at: Some(exit.at.into()),
        held_by_background: exit.held_by_background,
    }
}

fn frame(frame: Frame) -> pb::Frame {
    use pb::frame::Frame as Wire;
    let kind = match frame.kind {
        FrameKind::Started { oldest, next, size, input_offset, live_from } => {
            Wire::Started(pb::Started { oldest, next, size: Some(cells(size)), input_offset, live_from })
        }
        FrameKind::Data(bytes) => Wire::Data(bytes),
        FrameKind::Gap { from, to } => Wire::Gap(pb::Gap { from, to }),
        FrameKind::Screen(shot) => Wire::Screen(pb::Screen {
            rows: shot.size.rows.into(),
            cols: shot.size.cols.into(),
            contents: shot.contents.to_vec(),
            cursor_row: shot.cursor.0.into(),
            cursor_col: shot.cursor.1.into(),
            cursor_hidden: shot.cursor_hidden,
            alternate_screen: shot.alternate_screen,
            bracketed_paste: shot.bracketed_paste,
            application_cursor: shot.application_cursor,
        }),
        FrameKind::Title(title) => Wire::Title(title),
        FrameKind::Cwd(cwd) => Wire::Cwd(cwd),
        FrameKind::Foreground(job) => Wire::Foreground(job),
        FrameKind::Resized(size) => Wire::Resized(cells(size)),
        FrameKind::Exit(ended) => Wire::Exit(exit(ended)),
        FrameKind::KeepAlive => Wire::Keepalive(pb::KeepAlive {}),
    };
    pb::Frame {
        terminal_id: frame.terminal.to_string(),
        epoch: frame.epoch,
        offset: frame.offset,
        frame: Some(kind),
    }
}

fn attached(event: AttachmentEvent) -> pb::AttachResponse {
    use pb::attach_response::Response as Wire;
    let response = match event {
        AttachmentEvent::Frame(happened) => Wire::Frame(frame(happened)),
        AttachmentEvent::Ack { epoch, next } => Wire::InputAck(pb::InputAck { epoch, next_offset: next }),
        AttachmentEvent::Refused(refusal) => Wire::InputRefused(pb::InputRefused {
            reason: error::name(WireError::from(refusal.error).reason()).to_owned(),
            epoch: refusal.epoch,
            expected_offset: refusal.expected,
        }),
    };
    pb::AttachResponse { response: Some(response) }
}

fn watched(event: WatchEvent) -> pb::WatchTerminalsResponse {
    use pb::watch_terminals_response::Response as Wire;
    let response = match event {
        WatchEvent::Frame(happened) => Wire::Frame(frame(happened)),
        WatchEvent::Failed { terminal, error } => {
            let error = WireError::from(error);
            Wire::Failed(pb::WatchFailed {
                terminal_id: terminal.to_string(),
                reason: error::name(error.reason()).to_owned(),
                message: error.message().to_owned(),
            })
        }
    };
    pb::WatchTerminalsResponse { response: Some(response) }
}

fn status(error: TerminalError) -> Status {
    WireError::from(error).into()
}

impl From<TerminalError> for WireError {
    fn from(error: TerminalError) -> Self {
        let wire = |reason| Self::new(reason, error.to_string());
        match &error {
            TerminalError::BadField { field, allowed } => {
                wire(Reason::BadField).with("field", field).with("allowed", allowed)
            }
            TerminalError::NotFound(id) => wire(Reason::TerminalNotFound).with("id", id),
            TerminalError::WatchNotFound(id) => wire(Reason::StreamNotFound).with("id", id),
            TerminalError::Spawn(error) => Self::from(error),
            TerminalError::Pty(OpenError::NoPty) => wire(Reason::NoPty).with("what", "PTYs"),
            TerminalError::Pty(OpenError::NoFileDescriptors) => {
                wire(Reason::NoFileDescriptors).with("what", "file descriptors")
            }
            TerminalError::Pty(OpenError::Io(source)) => io(&error.to_string(), source),
            TerminalError::StaleEpoch { epoch } => wire(Reason::StaleEpoch).with("epoch", epoch),
            TerminalError::InputHole { expected } => {
                wire(Reason::InputHole).with("expected_offset", expected)
            }
            TerminalError::InputForgotten { expected } => {
                wire(Reason::InputForgotten).with("expected_offset", expected)
            }
            TerminalError::InputFull { expected } => wire(Reason::InputFull)
                .with("what", "bytes of input")
                .with("limit", crate::terminal::INPUT_QUEUE_BYTES)
                .with("expected_offset", expected)
                .retry_after(INPUT_RETRY),
            TerminalError::ReadOnly => wire(Reason::VerbMissing).with("verb", "terminal"),
            TerminalError::Ended(ended) => wire(Reason::Ended).with("exit", how(ended.how)),
            TerminalError::Preparing => wire(Reason::Preparing),
            TerminalError::BadOffset { next } => wire(Reason::BadOffset).with("next", next),
            TerminalError::TooManyTerminals { limit } => {
                wire(Reason::TooManyTerminals).with("limit", limit).with("what", "terminals")
            }
            TerminalError::TooManyStreams { what, limit } => {
                wire(Reason::TooManyStreams).with("limit", limit).with("what", what)
            }
            TerminalError::WouldNotEnd => wire(Reason::Internal).with("operation", "close a terminal"),
            TerminalError::ShuttingDown => wire(Reason::ShuttingDown),
            TerminalError::Io { source, .. } => io(&error.to_string(), source),
        }
    }
}

/// When input may be sent again after the queue was full.
const INPUT_RETRY: Duration = Duration::from_millis(200);

fn io(message: &str, source: &std::io::Error) -> WireError {
    WireError::new(Reason::Io, format!("{message}: {source}"))
        .with("errno", source.raw_os_error().map_or_else(|| "none".to_owned(), |errno| errno.to_string()))
}

fn how(how: Ended) -> String {
    match how {
        Ended::Code(code) => code.to_string(),
        Ended::Signal(signal) => signals::name(signal),
    }
}
