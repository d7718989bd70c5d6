//! The JSON API under `/v1`: workspaces and archives over plain HTTP, for clients without gRPC.
//!
//! Each route calls one RPC. The fields of the RPC's request come from the path, and from the query or
//! the body. The answer is the RPC's response, or one field of it. The messages, their JSON and their
//! descriptions are those of the .proto files (`podling_proto::json`), so a new field needs no change
//! here. A route requires the RPC's verb, and fails with the RPC's own error. All routes are in this
//! file. Each is added together with its description, so that the document at `/v1/openapi.json`
//! always matches the router.

use axum::{
    Router,
    response::{IntoResponse, Response},
};
use http::Method;
use podling_proto::{
    control::v1::{
        WatchWorkspacesRequest, workspace_archives_server::WorkspaceArchives, workspaces_server::Workspaces,
    },
    error::WireError,
    error_response::WireProtocol,
};

use self::{operation::OpenApiOperation, routes::Routes};
use super::{workspace_archives::WorkspaceArchivesService, workspaces::WorkspacesService};

mod document;
mod operation;
mod request;
mod routes;
mod watch;

/// Path of the OpenAPI document.
const DOCUMENT: &str = "/v1/openapi.json";
/// Prefix of all routes of one workspace.
const WORKSPACE: &str = "/v1/workspaces/{workspace}";
/// The events of `/v1/watch`, which no message describes.
const WATCH_EVENTS: &str = "Events: `workspace` (exists or has changed), `deleted` ({\"id\"}), `synced` \
    (all existing workspaces have been sent), and last `problem` (the control plane ends the stream). A \
    comment after 15 s without an event keeps the stream alive.";

/// Returns whether `path` belongs to the JSON API.
pub(crate) fn serves(path: &str) -> bool {
    path == "/v1" || path.starts_with("/v1/")
}

/// The error of a handler, which is rendered as problem details.
#[derive(Debug)]
pub(super) struct ProblemResponse(WireError);

impl<E: Into<WireError>> From<E> for ProblemResponse {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for ProblemResponse {
    fn into_response(self) -> Response {
        WireProtocol::Http.error_response(self.0)
    }
}

/// The gRPC services that the routes call.
#[derive(Debug, Clone)]
pub(super) struct JsonServices {
    workspaces: WorkspacesService,
    archives: WorkspaceArchivesService,
}

/// Returns the router of the JSON API. Every request must carry its `Principal`, which the server's
/// router adds.
pub fn router(workspaces: WorkspacesService, archives: WorkspaceArchivesService) -> Router {
    let of = |rest: &str| format!("{WORKSPACE}{rest}");
    let accepted = "The request was accepted; the watch call follows the workspace's state";

    Routes::default()
        .rpc(
            OpenApiOperation::new("list_workspaces", Method::GET, "/v1/workspaces")
                .answers(200, "The workspaces"),
            |api: JsonServices, request| async move { api.workspaces.list(request).await },
        )
        .rpc(
            OpenApiOperation::new("create_workspace", Method::POST, "/v1/workspaces")
                .answers_workspace(201, "The workspace was created; the header Location has its path")
                .answers(200, "The existing workspace that `request_id` or `reconnect` found"),
            |api: JsonServices, request| async move { api.workspaces.create(request).await },
        )
        .rpc(
            OpenApiOperation::new("get_workspace", Method::GET, WORKSPACE)
                .answers_workspace(200, "The workspace"),
            |api: JsonServices, request| async move { api.workspaces.get(request).await },
        )
        .rpc(
            OpenApiOperation::new("delete_workspace", Method::DELETE, WORKSPACE)
                .answers_workspace(202, accepted),
            |api: JsonServices, request| async move { api.workspaces.delete(request).await },
        )
        .rpc(
            OpenApiOperation::new("sleep_workspace", Method::POST, of("/sleep"))
                .answers_workspace(202, accepted),
            |api: JsonServices, request| async move { api.workspaces.sleep(request).await },
        )
        .rpc(
            OpenApiOperation::new("wake_workspace", Method::POST, of("/wake"))
                .answers_workspace(202, accepted),
            |api: JsonServices, request| async move { api.workspaces.wake(request).await },
        )
        .rpc(
            OpenApiOperation::new("undelete_workspace", Method::POST, of("/undelete"))
                .answers_workspace(200, "The workspace"),
            |api: JsonServices, request| async move { api.workspaces.undelete(request).await },
        )
        .rpc(
            OpenApiOperation::new("resize_workspace", Method::PATCH, of("/resources"))
                .body_is("resources")
                .answers_workspace(200, "The workspace, with its requested and its allocated resources"),
            |api: JsonServices, request| async move { api.workspaces.resize(request).await },
        )
        .rpc(
            OpenApiOperation::new("set_policy", Method::PATCH, of("/policy"))
                .body_is("policy")
                .answers_workspace(200, "The workspace with its new policy"),
            |api: JsonServices, request| async move { api.workspaces.set_policy(request).await },
        )
        .rpc(
            OpenApiOperation::new("explain_workspace", Method::GET, of("/explanation"))
                .answers(200, "The explanation"),
            |api: JsonServices, request| async move { api.workspaces.explain(request).await },
        )
        .add(
            &OpenApiOperation::new("watch_workspaces", Method::GET, "/v1/watch")
                .calls::<WatchWorkspacesRequest>()
                .text(WATCH_EVENTS)
                .streams("Server-sent events, each with one JSON value as its data"),
            watch::watch,
        )
        .rpc(
            OpenApiOperation::new("list_archives", Method::GET, "/v1/archives").answers(200, "The archives"),
            |api: JsonServices, request| async move { api.archives.list(request).await },
        )
        .rpc(
            OpenApiOperation::new("restore_archive", Method::POST, "/v1/archives/{archive}/restore")
                .answers_workspace(202, accepted),
            |api: JsonServices, request| async move { api.archives.restore(request).await },
        )
        .router(JsonServices { workspaces, archives })
}

#[cfg(test)]
mod tests {
    use podling_proto::{control::v1::Workspace, json::to_json};

    use crate::{api::workspaces::convert, snapshot::STATES};

    #[test]
    fn word_of_a_state_is_its_name_in_the_snapshot() {
        for (state, name) in STATES {
            let workspace = Workspace { state: convert::state(*state).into(), ..Workspace::default() };
            assert_eq!(to_json(&workspace)["state"], *name);
        }
    }
}
