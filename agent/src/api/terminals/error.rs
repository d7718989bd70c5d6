//! Converts terminal errors to wire errors. The match is exhaustive, so every new error needs a
//! reason.

use std::time::Duration;

use podling_proto::error::{Reason, WireError};
use tonic::Status;

use crate::{
    child::{ExitStatus, signals},
    terminal::{PtyOpenError, TerminalError},
};

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
                .with("limit", crate::terminal::INPUT_QUEUE_BYTES)
                .with("expected_offset", expected)
                .retry_after(INPUT_RETRY),
            TerminalError::ReadOnly => wire(Reason::VerbMissing).with("verb", "terminal"),
            TerminalError::TerminalEnded(ended) => wire(Reason::Ended).with("exit", how(ended.status)),
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

/// Delay after which a client may send input again when the input queue was full.
const INPUT_RETRY: Duration = Duration::from_millis(200);

fn io(message: &str, source: &std::io::Error) -> WireError {
    WireError::new(Reason::Io, format!("{message}: {source}"))
        .with("errno", source.raw_os_error().map_or_else(|| "none".to_owned(), |errno| errno.to_string()))
}

fn how(how: ExitStatus) -> String {
    match how {
        ExitStatus::Code(code) => code.to_string(),
        ExitStatus::Signal(signal) => signals::name(signal),
    }
}
