//! Converts requests of clients from proto to domain types. Fallible.

use podling_proto::{agent::v1 as pb, error::WireError};

use crate::terminal::{
    AttachOptions, ClientId, InputKind, SignalTarget, TerminalError, TerminalId, TerminalInput, ViewerStart,
    WindowSize,
};

/// Credit that a client may request, in bytes.
const CREDIT: std::ops::RangeInclusive<u32> = 4 * 1024..=16 * 1024 * 1024;
pub(super) fn attach(open: pb::AttachOpen) -> Result<AttachOptions, WireError> {
    let client = client(&open.client_id)?;
    if client.is_none() && !open.read_only {
        return Err(bad("client_id", "1 to 64 bytes long, unless read_only is set"));
    }
    Ok(AttachOptions {
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
