//! Converts errors to problem details (RFC 9457) over plain HTTP, with the same reasons as over
//! gRPC.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use podling_proto::error::{Reason, WireError, code, name};
use tonic::Code;

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
