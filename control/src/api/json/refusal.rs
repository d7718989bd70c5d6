//! A refusal on its way to the caller: problem details. Must not know what is refused.

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use podling_proto::error::WireError;
use tonic::Status;

use crate::refusal::{Protocol, plain_refusal};

/// Why a request is not done.
#[derive(Debug)]
pub(super) struct Refusal {
    error: WireError,
    /// Where HTTP has a word of its own for it.
    status: Option<StatusCode>,
}

impl Refusal {
    /// With a status of HTTP's that says more than the reason's.
    pub(super) fn said_by(status: StatusCode, error: WireError) -> Self {
        Self { error, status: Some(status) }
    }
}

impl From<WireError> for Refusal {
    fn from(error: WireError) -> Self {
        Self { error, status: None }
    }
}

/// What an RPC refuses.
impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        WireError::from(status).into()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self.status {
            Some(status) => plain_refusal(status, &self.error),
            None => Protocol::Http.refuse(self.error),
        }
    }
}
