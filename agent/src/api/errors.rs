//! Conversions of errors that several services have, and error responses in the caller's protocol:
//! a gRPC or gRPC-web status, or problem details (RFC 9457) over plain HTTP, with the same reasons.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{self, CONTENT_TYPE, WWW_AUTHENTICATE},
};
use podling_proto::error::{Reason, WireError, code, name};
use rustix::io::Errno;
use tonic::{Code, Status};

use crate::{admission::Rejection, spawn::SpawnError};

const GRPC: &str = "application/grpc";
const GRPC_WEB: &str = "application/grpc-web";

impl From<Rejection> for WireError {
    fn from(rejection: Rejection) -> Self {
        let reason = match rejection {
            Rejection::Preparing => Reason::Preparing,
            Rejection::Maintenance => Reason::Maintenance,
        };
        Self::new(reason, rejection.to_string())
    }
}

impl From<&SpawnError> for WireError {
    fn from(error: &SpawnError) -> Self {
        let message = match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        let wire = |reason| Self::new(reason, message.clone());
        match error {
            SpawnError::Unclaimed => wire(Reason::Unclaimed),
            SpawnError::BadField { field, problem } => {
                wire(Reason::BadField).with("field", field).with("allowed", problem)
            }
            SpawnError::NotFound { program, .. } => {
                wire(Reason::ProgramNotFound).with("program", program).with("cause", "no such program")
            }
            SpawnError::NotExecutable { program, problem } => {
                wire(Reason::ProgramNotExecutable).with("program", program).with("cause", problem)
            }
            SpawnError::BadInterpreter { program, interpreter } => wire(Reason::ProgramBadInterpreter)
                .with("program", program)
                .with("cause", format!("interpreter {interpreter}")),
            SpawnError::BadCwd { cwd, source } => {
                wire(Reason::BadCwd).with("program", cwd).with("cause", source)
            }
            SpawnError::Exhausted { program, source } => {
                let (reason, what) = match Errno::from_io_error(source) {
                    Some(Errno::MFILE | Errno::NFILE) => (Reason::NoFileDescriptors, "file descriptors"),
                    Some(Errno::NOMEM) => (Reason::NoMemory, "memory"),
                    _ => (Reason::TooManyProcesses, "processes"),
                };
                wire(reason).with("what", what).with("program", program)
            }
            SpawnError::Exec { program, source } => {
                wire(Reason::SpawnFailed).with("program", program).with("cause", source)
            }
        }
    }
}

pub(crate) fn problem(error: &WireError) -> Response {
    let status = status(error.reason());
    let body = serde_json::json!({
        "type": "about:blank",
        "title": status.canonical_reason(),
        "status": status.as_u16(),
        "detail": error.message(),
        "reason": name(error.reason()),
        "metadata": error.metadata(),
    });
    let mut response = (status, body.to_string()).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if let Some(delay) = error.retry_delay() {
        headers.insert(header::RETRY_AFTER, delay.as_secs().max(1).into());
    }
    response
}

fn status(reason: Reason) -> StatusCode {
    match reason {
        Reason::DiskFull => return StatusCode::INSUFFICIENT_STORAGE,
        Reason::TooLarge => return StatusCode::PAYLOAD_TOO_LARGE,
        _ => {}
    }
    match code(reason) {
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::InvalidArgument => StatusCode::BAD_REQUEST,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::FailedPrecondition | Code::Aborted => StatusCode::CONFLICT,
        Code::OutOfRange => StatusCode::RANGE_NOT_SATISFIABLE,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::DataLoss => StatusCode::UNPROCESSABLE_ENTITY,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Returns whether the caller speaks gRPC or gRPC-web.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    content_type(headers).starts_with(GRPC)
}

pub(crate) fn respond(headers: &HeaderMap, error: WireError) -> Response {
    let content_type = content_type(headers);
    if !content_type.starts_with(GRPC) {
        return challenge(&error);
    }
    // gRPC and gRPC-web allow a response without a message to carry its status in the headers.
    let mut response = Status::from(error).into_http::<Body>();
    if content_type.starts_with(GRPC_WEB) {
        let same = HeaderValue::from_str(content_type).unwrap_or(HeaderValue::from_static(GRPC_WEB));
        response.headers_mut().insert(CONTENT_TYPE, same);
    }
    response
}

fn challenge(error: &WireError) -> Response {
    let mut response = problem(error);
    if response.status() == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

fn content_type(headers: &HeaderMap) -> &str {
    headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default()
}
