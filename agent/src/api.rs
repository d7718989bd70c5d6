//! gRPC and HTTP services. They only convert between messages and domain types. Converting a
//! request can fail, but converting a response cannot.

pub mod activity;
pub mod archives;
mod errors;
pub mod files;
pub mod files_http;
pub mod processes;
pub mod terminals;

use bytes::Bytes;
use podling_proto::{agent::v1 as wire, error::WireError};
use tonic::Status;

use crate::{
    child::{ExitStatus, signals},
    files::{FileError, RelPath},
};

/// Maximum content of one message from a client, in bytes.
const MAX_DATA: usize = 1024 * 1024;

/// Converts a path. An absent path means the workspace root.
fn path(path: Option<wire::Path>) -> Result<RelPath, Status> {
    let bytes = match path.and_then(|path| path.path) {
        None => Vec::new(),
        Some(wire::path::Path::Text(text)) => text.into_bytes(),
        Some(wire::path::Path::Raw(raw)) => raw,
    };
    parse(&bytes).map_err(status)
}

/// Parses a path from a gRPC or HTTP request.
fn parse(bytes: &[u8]) -> Result<RelPath, FileError> {
    let shown = || String::from_utf8_lossy(bytes).into_owned();
    RelPath::parse(bytes).map_err(|problem| FileError::BadPath { path: shown(), problem })
}

/// Converts an optional SHA-256 digest.
fn sha256(bytes: &[u8]) -> Result<Option<[u8; 32]>, Status> {
    match bytes {
        [] => Ok(None),
        bytes => bytes.try_into().map(Some).map_err(|_| bad_field("sha256", "empty or 32 bytes")),
    }
}

/// Rejects content larger than [`MAX_DATA`].
fn sized(data: Bytes) -> Result<Bytes, Status> {
    if data.len() <= MAX_DATA {
        return Ok(data);
    }
    Err(status(FileError::TooLarge { what: "data".into(), limit: Some(MAX_DATA) }))
}

fn bad_field(field: &'static str, allowed: &'static str) -> Status {
    status(FileError::BadField { field, allowed })
}

/// Returns the exit code, or the name of the signal.
fn exit_word(exit: ExitStatus) -> String {
    match exit {
        ExitStatus::Code(code) => code.to_string(),
        ExitStatus::Signal(signal) => signals::name(signal),
    }
}

fn status(error: FileError) -> Status {
    WireError::from(error).into()
}
