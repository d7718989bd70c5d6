//! Converts between messages and domain types of terminals. Requests are fallible; responses and
//! errors are total. The match of errors is exhaustive, so every new error needs a reason.

use std::{io, time::Duration};

use podling_proto::{
    agent::v1 as pb,
    error::{self, Reason, WireError},
};
use tonic::Status;

use crate::{
    api::exit_word,
    child::{ExitStatus, signals},
    terminal::{
        AttachmentEvent, ClientId, Frame, FrameKind, INPUT_QUEUE_BYTES, InputKind, PtyOpenError,
        SignalTarget, TerminalError, TerminalExit, TerminalId, TerminalInfo, TerminalInput, ViewerOptions,
        ViewerStart, WatchEvent, WindowSize,
    },
};

/// Credit that a client may request, in bytes.
const CREDIT: std::ops::RangeInclusive<u32> = 4 * 1024..=16 * 1024 * 1024;
/// Delay after which a client may send input again when the input queue was full.
const INPUT_RETRY: Duration = Duration::from_millis(200);

pub(super) fn attach(open: pb::AttachOpen) -> Result<ViewerOptions, WireError> {
    let client = client(&open.client_id)?;
    if client.is_none() && !open.read_only {
        return Err(bad("client_id", "1 to 64 bytes long, unless read_only is set"));
    }
    Ok(ViewerOptions {
        terminal: TerminalId::new(&open.terminal_id),
        from: begin(open.from)?,
        client,
        size: size(open.size)?,
        credit: credit(open.credit_bytes)?,
        lossless: open.lossless,
        read_only: open.read_only,
    })
}

pub(super) fn begin(from: Option<pb::From>) -> Result<ViewerStart, WireError> {
    match from.and_then(|from| from.from) {
        Some(pb::from::From::Position(pb::Position { epoch, offset })) => {
            Ok(ViewerStart::Position { epoch, offset })
        }
        Some(pb::from::From::Screen(_)) => Ok(ViewerStart::Screen),
        Some(pb::from::From::Oldest(_)) => Ok(ViewerStart::Oldest),
        Some(pb::from::From::Now(_)) => Ok(ViewerStart::Now),
        None => Err(bad("from", "one of position, screen, oldest and now")),
    }
}

pub(super) fn client(id: &str) -> Result<Option<ClientId>, WireError> {
    if id.is_empty() {
        return Ok(None);
    }
    Ok(Some(ClientId::new(id)?))
}

pub(super) fn size(size: Option<pb::Size>) -> Result<Option<WindowSize>, WireError> {
    match size {
        Some(size) => Ok(Some(WindowSize::new(size.rows, size.cols)?)),
        None => Ok(None),
    }
}

pub(super) fn credit(bytes: u32) -> Result<u64, WireError> {
    if bytes == 0 || CREDIT.contains(&bytes) {
        return Ok(bytes.into());
    }
    Err(bad("credit_bytes", "0, or 4 KiB to 16 MiB"))
}

pub(super) fn input(input: &pb::Input) -> TerminalInput<'_> {
    let kind = match input.kind() {
        pb::InputKind::Reply => InputKind::Reply { at: input.reply_at },
        pb::InputKind::User | pb::InputKind::Unspecified => InputKind::User,
    };
    TerminalInput { epoch: input.epoch, offset: input.offset, data: &input.data, kind }
}

pub(super) fn target(signal: &pb::SignalName) -> SignalTarget {
    if signal.session { SignalTarget::Session } else { SignalTarget::Foreground }
}

pub(super) fn bad(field: &'static str, allowed: &'static str) -> WireError {
    TerminalError::BadField { field, allowed }.into()
}

// === responses ===

pub(super) fn terminal(info: TerminalInfo) -> pb::Terminal {
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
        pid: info.pid.map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs()),
        exit: info.exit.map(exit),
        byte_log_bytes: info.byte_log_bytes as u64,
        viewers: info.viewers as u32,
    }
}

pub(super) fn cells(size: WindowSize) -> pb::Size {
    pb::Size { rows: size.rows.into(), cols: size.cols.into() }
}

pub(super) fn exit(exit: TerminalExit) -> pb::Exit {
    let how = match exit.status {
        ExitStatus::Code(code) => pb::exit::How::Code(code),
        ExitStatus::Signal(signal) => pb::exit::How::Signal(signals::name(signal)),
    };
    pb::Exit {
        how: Some(how),
        final_offset: exit.final_offset,
        at: Some(exit.ended_at.into()),
        held_by_background: exit.held_by_background,
    }
}

pub(super) fn frame(frame: Frame) -> pb::Frame {
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

pub(super) fn attached(event: AttachmentEvent) -> pb::AttachResponse {
    use pb::attach_response::Response as Wire;
    let response = match event {
        AttachmentEvent::Frame(happened) => Wire::Frame(frame(happened)),
        AttachmentEvent::Ack { epoch, next } => Wire::InputAck(pb::InputAck { epoch, next_offset: next }),
        AttachmentEvent::Rejected(rejection) => Wire::InputRejected(pb::InputRejected {
            reason: error::name(WireError::from(rejection.error).reason()).to_owned(),
            epoch: rejection.epoch,
            expected_offset: rejection.expected,
        }),
    };
    pb::AttachResponse { response: Some(response) }
}

pub(super) fn watched(event: WatchEvent) -> pb::WatchTerminalsResponse {
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

// === errors ===

pub(super) fn status(error: TerminalError) -> Status {
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
            TerminalError::Pty(PtyOpenError::NoPty) => wire(Reason::NoPty).with("what", "PTYs"),
            TerminalError::Pty(PtyOpenError::NoFileDescriptors) => {
                wire(Reason::NoFileDescriptors).with("what", "file descriptors")
            }
            TerminalError::Pty(PtyOpenError::Io(source)) => io(&error.to_string(), source),
            TerminalError::StaleEpoch { epoch } => wire(Reason::StaleEpoch).with("epoch", epoch),
            TerminalError::InputGap { expected } => wire(Reason::InputGap).with("expected_offset", expected),
            TerminalError::ClientEvicted { expected } => {
                wire(Reason::ClientEvicted).with("expected_offset", expected)
            }
            TerminalError::InputFull { expected } => wire(Reason::InputFull)
                .with("what", "bytes of input")
                .with("limit", INPUT_QUEUE_BYTES)
                .with("expected_offset", expected)
                .retry_after(INPUT_RETRY),
            TerminalError::ReadOnly => wire(Reason::VerbMissing).with("verb", "terminal"),
            TerminalError::TerminalEnded(ended) => wire(Reason::Ended).with("exit", exit_word(ended.status)),
            TerminalError::Rejected(rejection) => (*rejection).into(),
            TerminalError::BadOffset { next } => wire(Reason::BadOffset).with("next", next),
            TerminalError::TooManyTerminals { limit } => {
                wire(Reason::TooManyTerminals).with("limit", limit).with("what", "terminals")
            }
            TerminalError::TooManyStreams { what, limit } => {
                wire(Reason::TooManyStreams).with("limit", limit).with("what", what)
            }
            TerminalError::ProcessesSurvivedKill => {
                wire(Reason::Internal).with("operation", "close a terminal")
            }
            TerminalError::ShuttingDown => wire(Reason::ShuttingDown),
            TerminalError::Io { source, .. } => io(&error.to_string(), source),
        }
    }
}

fn io(message: &str, source: &io::Error) -> WireError {
    WireError::new(Reason::Io, format!("{message}: {source}"))
        .with("errno", source.raw_os_error().map_or_else(|| "none".to_owned(), |errno| errno.to_string()))
}
