//! The JSON API under `/v1`: workspaces and archives over plain HTTP, for clients without gRPC.
//!
//! Each route calls one RPC. It converts its request to the RPC's message, and the response to
//! JSON. It requires the RPC's verb, and fails with the RPC's own error. Each route is added together
//! with its description, so that the document at `/v1/openapi.json` always matches the router.
//!
//! Names are those of the proto. States and activity levels are lower-case words such as
//! "falling-asleep". Times are RFC 3339, and durations are numbers of seconds. Absent values are
//! left out, never null. Unknown fields are rejected.

mod activity;
mod archives;
mod request;
mod routes;
mod workspace;
mod workspaces;

use axum::{
    Router,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use podling_proto::error::WireError;
use schemars::JsonSchema;
use serde::Deserialize;
use tonic::Status;

use self::routes::Routes;
use super::{workspace_archives::WorkspaceArchivesService, workspaces::WorkspacesService};
use crate::error_response::{WireProtocol, http_error_response};

/// Returns whether `path` belongs to the JSON API.
pub(crate) fn serves(path: &str) -> bool {
    path == "/v1" || path.starts_with("/v1/")
}

/// The gRPC services that the handlers call.
#[derive(Debug, Clone)]
struct JsonServices {
    workspaces: WorkspacesService,
    archives: WorkspaceArchivesService,
}

/// The body of a request without parameters.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct EmptyBody {}

/// Returns the router of the JSON API. Every request must carry its `Principal`, which the server's
/// router adds.
pub fn router(workspaces: WorkspacesService, archives: WorkspaceArchivesService) -> Router {
    let routes = archives::routes(workspaces::routes(Routes::default()));
    routes.router(JsonServices { workspaces, archives })
}

#[derive(Debug)]
pub(crate) struct ProblemResponse {
    error: WireError,
    /// Replaces the HTTP status that follows from the reason.
    status: Option<StatusCode>,
}

impl ProblemResponse {
    /// Responds with a status that is more specific than the reason's own.
    fn with_status(status: StatusCode, error: WireError) -> Self {
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
