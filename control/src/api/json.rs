//! The JSON API under `/v1`: workspaces and archives over plain HTTP, for clients without gRPC.
//!
//! A thin layer over the gRPC services. A route turns its request into the message of an RPC, and
//! the RPC's response into JSON. It rejects with the RPC's own error and needs the RPC's verb. All
//! routes are in this file. Each is added together with its description, so that the document at
//! `/v1/openapi.json` always matches the router.
//!
//! Conventions: names are those of the proto. States and activity levels are lower-case words such
//! as "falling-asleep". Times are RFC 3339, and durations are numbers of seconds. Absent values are
//! left out, never null. Unknown fields are rejected.

use axum::Router;
use schemars::JsonSchema;
use serde::Deserialize;

use self::{
    operation::{HttpMethod, OpenApiOperation},
    routes::Routes,
};
use super::{workspace_archives::WorkspaceArchivesService, workspaces::WorkspacesService};

mod activity;
mod archives;
mod document;
mod operation;
mod policy;
mod problem_response;
mod reason;
mod request;
mod routes;
mod scalar;
mod watch;
mod workspace;
mod workspaces;

/// Path of the OpenAPI document.
const DOCUMENT: &str = "/v1/openapi.json";
/// Prefix of all routes of one workspace.
const WORKSPACE: &str = "/v1/workspaces/{workspace}";
/// Full names of the gRPC services behind the routes.
const WORKSPACES: &str = "/podling.control.v1.Workspaces";
const WORKSPACE_ARCHIVES: &str = "/podling.control.v1.WorkspaceArchives";

/// Whether `path` belongs to the JSON API.
pub(crate) fn serves(path: &str) -> bool {
    path == "/v1" || path.starts_with("/v1/")
}

/// The gRPC services that the handlers call.
#[derive(Debug, Clone)]
pub(super) struct JsonServices {
    workspaces: WorkspacesService,
    archives: WorkspaceArchivesService,
}

/// The body of a request without parameters.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct EmptyBody {}

/// Returns the routes. Every request has to carry its `Principal`, which the server's router adds.
pub fn router(workspaces: WorkspacesService, archives: WorkspaceArchivesService) -> Router {
    let of = |rest: &str| format!("{WORKSPACE}{rest}");
    let workspaces_rpc = |method: &str| format!("{WORKSPACES}/{method}");
    let archives_rpc = |method: &str| format!("{WORKSPACE_ARCHIVES}/{method}");

    Routes::default()
        .add(
            OpenApiOperation::new(HttpMethod::Get, "/v1/workspaces", workspaces_rpc("List"))
                .named("list_workspaces", "Workspaces that the token may see, by name")
                .query::<workspaces::ListWorkspacesQuery>()
                .answers::<workspaces::WorkspaceList>(200, "The workspaces"),
            workspaces::list,
        )
        .add(
            OpenApiOperation::new(HttpMethod::Post, "/v1/workspaces", workspaces_rpc("Create"))
                .named(
                    "create_workspace",
                    "Create a workspace and wake it; returns at once, follow it with watch",
                )
                .takes::<workspaces::CreateBody>()
                .answers::<workspace::JsonWorkspace>(
                    201,
                    "The workspace was created; Location is its address",
                )
                .answers::<workspace::JsonWorkspace>(
                    200,
                    "The workspace that `request_id` or `reconnect` found",
                ),
            workspaces::create,
        )
        .add(
            OpenApiOperation::new(HttpMethod::Get, WORKSPACE, workspaces_rpc("Get"))
                .named("get_workspace", "Get one workspace")
                .answers::<workspace::JsonWorkspace>(200, "The workspace"),
            workspaces::get,
        )
        .add(
            OpenApiOperation::new(HttpMethod::Delete, WORKSPACE, workspaces_rpc("Delete"))
                .named("delete_workspace", "Delete a workspace; it is archived first unless `discard` is set")
                .query::<workspaces::DeleteQuery>()
                .answers::<workspace::JsonWorkspace>(202, "The request was accepted"),
            workspaces::delete,
        )
        .add(
            OpenApiOperation::new(HttpMethod::Post, of("/sleep"), workspaces_rpc("Sleep"))
                .named("sleep_workspace", "Put a workspace to sleep: its processes end, its storage stays")
                .takes::<workspaces::SleepBody>()
                .answers::<workspace::JsonWorkspace>(202, "The request was accepted"),
            workspaces::sleep,
        )
        .add(
            OpenApiOperation::new(HttpMethod::Post, of("/wake"), workspaces_rpc("Wake"))
                .named("wake_workspace", "Wake a workspace; returns at once, follow it with watch")
                .takes::<EmptyBody>()
                .answers::<workspace::JsonWorkspace>(202, "The request was accepted"),
            workspaces::wake,
        )
        .add(
            OpenApiOperation::new(HttpMethod::Patch, of("/resources"), workspaces_rpc("Resize"))
                .named(
                    "resize_workspace",
                    "Change the resources it requests of its owner's quota; an increase may have to \
                     wait in the admission queue",
                )
                .takes::<workspaces::ResizeBody>()
                .answers::<workspace::JsonWorkspace>(
                    200,
                    "The workspace, with its requested and its allocated resources",
                ),
            workspaces::resize,
        )
        .add(
            OpenApiOperation::new(HttpMethod::Patch, of("/policy"), workspaces_rpc("SetPolicy"))
                .named(
                    "set_policy",
                    "Change the fields of its policy that the body contains; takes effect at once",
                )
                .takes::<policy::JsonPolicy>()
                .answers::<workspace::JsonWorkspace>(200, "The workspace with its new policy"),
            workspaces::set_policy,
        )
        .add(
            OpenApiOperation::new(HttpMethod::Get, of("/explanation"), workspaces_rpc("Explain"))
                .named(
                    "explain_workspace",
                    "Explain its state: the reason, the next transition and its time, what would change \
                     that, and recent decisions",
                )
                .answers::<workspaces::Explanation>(200, "The explanation"),
            workspaces::explain,
        )
        .add(
            OpenApiOperation::new(HttpMethod::Get, "/v1/watch", workspaces_rpc("Watch"))
                .named(
                    "watch_workspaces",
                    "Stream the workspaces that exist, then every change. Events: `workspace`; `gone` \
                     ({\"id\"}); `synced`, once the existing workspaces have been sent; `problem`, last, \
                     when the control plane ends the stream. A comment every 15 s keeps a silent stream \
                     alive",
                )
                .query::<watch::WatchQuery>()
                .streams("Server-sent events, each with one JSON value as its data"),
            watch::watch,
        )
        .add(
            OpenApiOperation::new(HttpMethod::Get, "/v1/archives", archives_rpc("List"))
                .named(
                    "list_archives",
                    "Archives that the token may see, newest first, including those of deleted workspaces",
                )
                .query::<archives::ListArchivesQuery>()
                .answers::<archives::ArchiveList>(200, "The archives"),
            archives::list,
        )
        .add(
            OpenApiOperation::new(
                HttpMethod::Post,
                "/v1/archives/{archive}/restore",
                archives_rpc("Restore"),
            )
            .named(
                "restore_archive",
                "Restore a workspace, also if it was deleted; with `name`, restore into a new one",
            )
            .takes::<archives::RestoreBody>()
            .answers::<workspace::JsonWorkspace>(202, "The workspace; follow it until it is awake"),
            archives::restore,
        )
        .router(JsonServices { workspaces, archives })
}
