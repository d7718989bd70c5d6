//! The JSON API under `/v1`, for who speaks no gRPC: Workspaces and WorkspaceArchives as plain HTTP.
//!
//! Thin over the gRPC services: a request becomes the message of the RPC that a route calls, and its answer becomes JSON. What an RPC
//! refuses is refused here in the same words, and needs the same verb. All routes are in this file, and each is added together with its
//! description, so that the document at `/v1/openapi.json` and the router cannot differ.
//!
//! Decided once: names are the proto's, states and verdicts are the words people know ("falling-asleep"), times are RFC 3339,
//! durations are seconds as a number, what is not there is absent (never null), and what is not known is refused.

use axum::Router;
use schemars::JsonSchema;
use serde::Deserialize;

use self::{
    operation::{HttpMethod, Operation},
    routes::Routes,
};
use super::{backups::WorkspaceArchivesService, workspaces::WorkspacesService};

mod activity;
mod archives;
mod document;
mod operation;
mod policy;
mod problem_response;
mod request;
mod routes;
mod scalar;
mod watch;
mod workspace;
mod workspaces;

/// Where the document is.
const DOCUMENT: &str = "/v1/openapi.json";
/// For a path that holds a workspace.
const WORKSPACE: &str = "/v1/workspaces/{workspace}";
/// The services that are called.
const WORKSPACES: &str = "/podling.control.v1.Workspaces";
const WORKSPACE_ARCHIVES: &str = "/podling.control.v1.WorkspaceArchives";

/// Whether a path is the JSON API's.
pub(crate) fn serves(path: &str) -> bool {
    path == "/v1" || path.starts_with("/v1/")
}

/// What the handlers ask.
#[derive(Debug, Clone)]
pub(super) struct JsonServices {
    workspaces: WorkspacesService,
    backups: WorkspaceArchivesService,
}

/// A request that says nothing more.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct EmptyBody {}

/// The routes, over the same services that answer gRPC. Requests carry their `Principal`, whom the front has put there.
pub fn router(workspaces: WorkspacesService, backups: WorkspaceArchivesService) -> Router {
    let of = |rest: &str| format!("{WORKSPACE}{rest}");
    let workspaces_rpc = |method: &str| format!("{WORKSPACES}/{method}");
    let archives_rpc = |method: &str| format!("{WORKSPACE_ARCHIVES}/{method}");

    Routes::default()
        .add(
            Operation::new(HttpMethod::Get, "/v1/workspaces", workspaces_rpc("List"))
                .named("list_workspaces", "Those the token may see, by name")
                .query::<workspaces::ListQuery>()
                .answers::<workspaces::List>(200, "The workspaces"),
            workspaces::list,
        )
        .add(
            Operation::new(HttpMethod::Post, "/v1/workspaces", workspaces_rpc("Create"))
                .named(
                    "create_workspace",
                    "Makes a workspace and wants it awake; answers at once, watch tells how it goes",
                )
                .takes::<workspaces::Create>()
                .answers::<workspace::Workspace>(201, "It was made; Location is its address")
                .answers::<workspace::Workspace>(200, "`request_id` or `reconnect` found it"),
            workspaces::create,
        )
        .add(
            Operation::new(HttpMethod::Get, WORKSPACE, workspaces_rpc("Get"))
                .named("get_workspace", "One workspace")
                .answers::<workspace::Workspace>(200, "The workspace"),
            workspaces::get,
        )
        .add(
            Operation::new(HttpMethod::Delete, WORKSPACE, workspaces_rpc("Delete"))
                .named("delete_workspace", "Wants it gone; it is archived first, unless `discard` is said")
                .query::<workspaces::DeleteQuery>()
                .answers::<workspace::Workspace>(202, "It is on its way"),
            workspaces::delete,
        )
        .add(
            Operation::new(HttpMethod::Post, of("/sleep"), workspaces_rpc("Sleep"))
                .named("sleep_workspace", "Wants it asleep: its processes end, its storage stays")
                .takes::<workspaces::Sleep>()
                .answers::<workspace::Workspace>(202, "It is on its way"),
            workspaces::sleep,
        )
        .add(
            Operation::new(HttpMethod::Post, of("/wake"), workspaces_rpc("Wake"))
                .named("wake_workspace", "Wants it awake; answers at once, watch tells how it goes")
                .takes::<EmptyBody>()
                .answers::<workspace::Workspace>(202, "It is on its way"),
            workspaces::wake,
        )
        .add(
            Operation::new(HttpMethod::Patch, of("/resources"), workspaces_rpc("Resize"))
                .named("resize_workspace", "Gives it another share of its owner's room; more may have to be waited for in line")
                .takes::<workspaces::Resize>()
                .answers::<workspace::Workspace>(200, "The workspace, with what it shall have and what it has"),
            workspaces::resize,
        )
        .add(
            Operation::new(HttpMethod::Patch, of("/policy"), workspaces_rpc("SetPolicy"))
                .named("set_policy", "Changes its policy where the body says so; its agent is told at once")
                .takes::<policy::JsonPolicy>()
                .answers::<workspace::Workspace>(200, "The workspace with its new policy"),
            workspaces::set_policy,
        )
        .add(
            Operation::new(HttpMethod::Get, of("/explanation"), workspaces_rpc("Explain"))
                .named(
                    "explain_workspace",
                    "Why it is what it is, what happens next and when, what would change that, what was decided",
                )
                .answers::<workspaces::Explanation>(200, "The explanation"),
            workspaces::explain,
        )
        .add(
            Operation::new(HttpMethod::Get, "/v1/watch", workspaces_rpc("Watch"))
                .named(
                    "watch_workspaces",
                    "What is there now, then every change: events `workspace`, `gone` ({\"id\"}), `synced` once what was there at \
                     the beginning has been sent, and `problem` as the last one when the control plane ends the stream. A \
                     comment every 15 s keeps a silent stream alive",
                )
                .query::<watch::WatchQuery>()
                .streams("Server-sent events; the data of each is one JSON value"),
            watch::watch,
        )
        .add(
            Operation::new(HttpMethod::Get, "/v1/backups", backups_rpc("List"))
                .named("list_backups", "Backups of what the token may see, newest first, also of deleted workspaces")
                .query::<backups::ListQuery>()
                .answers::<backups::List>(200, "The backups"),
            backups::list,
        )
        .add(
            Operation::new(HttpMethod::Post, "/v1/backups/{backup}/restore", backups_rpc("Restore"))
                .named(
                    "restore_archive",
                    "Brings a workspace back: the same one, also if it was deleted, or with `name` a new one",
                )
                .takes::<archives::Restore>()
                .answers::<workspace::Workspace>(202, "Follow it until it is awake"),
            archives::restore,
        )
        .router(JsonServices { workspaces, backups })
}
