//! Converts responses from domain types to proto. Total.

use podling_proto::{
    agent::v1 as pb,
    error::{self, WireError},
};

use crate::{
    child::{ExitStatus, signals},
    terminal::{AttachmentEvent, Frame, FrameKind, TerminalExit, TerminalInfo, WatchEvent, WindowSize},
};

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
