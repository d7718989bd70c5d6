//! Errors of handlers, rendered as problem details (RFC 9457).

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use podling_proto::error::WireError;
use tonic::Status;

use crate::error_response::{WireProtocol, http_error_response};

#[derive(Debug)]
pub(super) struct ProblemResponse {
    error: WireError,
    /// Replaces the HTTP status that follows from the reason.
    status: Option<StatusCode>,
}

impl ProblemResponse {
    /// Responds with a status that is more specific than the reason's own.
    pub(super) fn with_status(status: StatusCode, error: WireError) -> Self {
        Self { error, status: Some(status) }
    }
}

impl From<WireError> for ProblemResponse {
    fn from(error: WireError) -> Self {
        Self { error, status: None }
    }
}

impl From<Status> for ProblemResponse {
    fn from(status: Status) -> Self {
        WireError::from(status).into()
    }
}

impl IntoResponse for ProblemResponse {
    fn into_response(self) -> Response {
        match self.status {
            Some(status) => http_error_response(status, &self.error),
            None => WireProtocol::Http.error_response(self.error),
        }
    }
}
