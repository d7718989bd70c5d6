//! The JSON API under `/v1`: workspaces and archives over plain HTTP, for clients without gRPC.
//!
//! Each route calls one RPC. It converts its request to the RPC's message, and the response to
//! JSON. It requires the RPC's verb, and fails with the RPC's own error. All routes are in this
//! file. Each is added together with its description, so that the document at `/v1/openapi.json`
//! always matches the router.
//!
//! Names are those of the proto. States and activity levels are lower-case words such as
//! "falling-asleep". Times are RFC 3339, and durations are numbers of seconds. Absent values are
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

/// Returns whether `path` belongs to the JSON API.
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

/// Returns the router of the JSON API. Every request must carry its `Principal`, which the server's
/// router adds.
pub fn router(workspaces: WorkspacesService, archives: WorkspaceArchivesService) -> Router {
    let of = |rest: &str| format!("{WORKSPACE}{rest}");
    let workspaces_rpc = |method: &str| format!("{WORKSPACES}/{method}");
    let archives_rpc = |method: &str| format!("{WORKSPACE_ARCHIVES}/{method}");

    Routes::default()
        .add(
            OpenApiOperation::new(HttpMethod::Get, "/v1/workspaces", workspaces_rpc("List"))
                .named("list_workspaces", "List workspaces, sorted by name")
                .query::<workspaces::ListWorkspacesQuery>()
                .answers::<workspaces::WorkspaceList>(200, "The workspaces"),
            workspaces::list,
        )
        .add(
            OpenApiOperation::new(HttpMethod::Post, "/v1/workspaces", workspaces_rpc("Create"))
                .named(
                    "create_workspace",
                    "Create a workspace and wake it. Returns before it is awake; use the watch call to \
                     follow its state",
                )
                .takes::<workspaces::CreateBody>()
                .answers::<workspace::JsonWorkspace>(
                    201,
                    "The workspace was created; the header Location has its path",
                )
                .answers::<workspace::JsonWorkspace>(
                    200,
                    "The existing workspace that `request_id` or `reconnect` found",
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
                .named("sleep_workspace", "Put a workspace to sleep. Its processes end; its storage stays")
                .takes::<workspaces::SleepBody>()
                .answers::<workspace::JsonWorkspace>(202, "The request was accepted"),
            workspaces::sleep,
        )
        .add(
            OpenApiOperation::new(HttpMethod::Post, of("/wake"), workspaces_rpc("Wake"))
                .named(
                    "wake_workspace",
                    "Wake a workspace. Returns before it is awake; use the watch call to follow its state",
                )
                .takes::<EmptyBody>()
                .answers::<workspace::JsonWorkspace>(202, "The request was accepted"),
            workspaces::wake,
        )
        .add(
            OpenApiOperation::new(HttpMethod::Post, of("/undelete"), workspaces_rpc("Undelete"))
                .named(
                    "undelete_workspace",
                    "Take the deletion of a workspace back, until its storage is released. Does not wake \
                     the workspace",
                )
                .takes::<EmptyBody>()
                .answers::<workspace::JsonWorkspace>(200, "The workspace"),
            workspaces::undelete,
        )
        .add(
            OpenApiOperation::new(HttpMethod::Patch, of("/resources"), workspaces_rpc("Resize"))
                .named(
                    "resize_workspace",
                    "Change the resources that a workspace requests of its owner's quota. An increase may \
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
                    "Change the fields of a workspace's policy that the body contains. Takes effect at once",
                )
                .takes::<policy::JsonPolicy>()
                .answers::<workspace::JsonWorkspace>(200, "The workspace with its new policy"),
            workspaces::set_policy,
        )
        .add(
            OpenApiOperation::new(HttpMethod::Get, of("/explanation"), workspaces_rpc("Explain"))
                .named(
                    "explain_workspace",
                    "Explain the state of a workspace: its reason, the next step and its time, what a user \
                     can do, and recent decisions",
                )
                .answers::<workspaces::Explanation>(200, "The explanation"),
            workspaces::explain,
        )
        .add(
            OpenApiOperation::new(HttpMethod::Get, "/v1/watch", workspaces_rpc("Watch"))
                .named(
                    "watch_workspaces",
                    "Stream the workspaces that exist, then every change. Events: `workspace` (exists or has \
                     changed), `deleted` ({\"id\"}), `synced` (all existing workspaces have been sent), and \
                     last `problem` (the control plane ends the stream). A comment after 15 s without an \
                     event keeps the stream alive",
                )
                .query::<watch::WatchQuery>()
                .streams("Server-sent events, each with one JSON value as its data"),
            watch::watch,
        )
        .add(
            OpenApiOperation::new(HttpMethod::Get, "/v1/archives", archives_rpc("List"))
                .named("list_archives", "List archives, newest first, including those of deleted workspaces")
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
                "Restore an archived or deleted workspace. With `name`, restore into a new workspace",
            )
            .takes::<archives::RestoreBody>()
            .answers::<workspace::JsonWorkspace>(202, "The workspace; the watch call follows its state"),
            archives::restore,
        )
        .router(JsonServices { workspaces, archives })
}
