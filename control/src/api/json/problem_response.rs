//! A refusal on its way to the caller: problem details. Must not know what is refused.

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use podling_proto::error::WireError;
use tonic::Status;

use crate::error_response::{WireProtocol, http_error_response};

/// Why a request is not done.
#[derive(Debug)]
pub(super) struct ProblemResponse {
    error: WireError,
    /// Where HTTP has a word of its own for it.
    status: Option<StatusCode>,
}

impl ProblemResponse {
    /// With a status of HTTP's that says more than the reason's.
    pub(super) fn with_status(status: StatusCode, error: WireError) -> Self {
        Self { error, status: Some(status) }
    }
}

impl From<WireError> for ProblemResponse {
    fn from(error: WireError) -> Self {
        Self { error, status: None }
    }
}

/// What an RPC refuses.
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
