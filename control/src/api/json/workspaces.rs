//! The workspace routes, with the bodies and queries that they take. Each handler calls one RPC of the
//! Workspaces service.
//!
//! The watch route is not below `/v1/workspaces`, because it would hide a workspace named "watch".

use std::{collections::HashMap, convert::Infallible};

use axum::{
    Extension, Json,
    extract::State,
    response::{IntoResponse, Response, Sse, sse::Event},
};
use futures_util::{Stream, StreamExt};
use http::{StatusCode, header::LOCATION};
use podling_core::workspace::{MAX_CPU_MILLIS, MAX_MEMORY_BYTES, MIN_MEMORY_BYTES};
use podling_proto::{
    control::v1::{
        CreateWorkspaceRequest, DeleteWorkspaceRequest, ExplainWorkspaceRequest, GetWorkspaceRequest,
        ListWorkspacesRequest, LogEntry, ResizeWorkspaceRequest, Resources, SetPolicyRequest,
        SleepWorkspaceRequest, UndeleteWorkspaceRequest, WakeWorkspaceRequest, WatchWorkspacesRequest,
        WatchWorkspacesResponse, watch_workspaces_response::Event as Change, workspaces_server::Workspaces,
    },
    error::WireError,
    problem,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tonic::Status;

use super::{
    EmptyBody, JsonServices, ProblemResponse,
    request::{JsonBody, PathParam, QueryParams, Time, enum_label, not_null},
    routes::{HttpMethod, OpenApiOperation, Routes},
    workspace::{JsonPolicy, JsonRemedy, JsonStateReason, JsonWorkspace},
};
use crate::{api::request_as, principal::Principal};

type HandlerResult<T> = Result<T, ProblemResponse>;

/// Adds the workspace routes, each with its description.
pub(crate) fn routes(routes: Routes) -> Routes {
    routes
        .add(
            OpenApiOperation::new(HttpMethod::Get, "/v1/workspaces", "Workspaces/List")
                .named("list_workspaces", "List workspaces, sorted by name")
                .query::<ListWorkspacesQuery>()
                .answers::<WorkspaceList>(200, "The workspaces"),
            list,
        )
        .add(
            OpenApiOperation::new(HttpMethod::Post, "/v1/workspaces", "Workspaces/Create")
                .named(
                    "create_workspace",
                    "Create a workspace and wake it. Returns before it is awake; use the watch call to \
                     follow its state",
                )
                .takes::<CreateBody>()
                .answers::<JsonWorkspace>(201, "The workspace was created; the header Location has its path")
                .answers::<JsonWorkspace>(
                    200,
                    "The existing workspace that `request_id` or `reconnect` found",
                ),
            create,
        )
        .add(
            OpenApiOperation::new(HttpMethod::Get, "/v1/workspaces/{workspace}", "Workspaces/Get")
                .named("get_workspace", "Get one workspace")
                .answers::<JsonWorkspace>(200, "The workspace"),
            get,
        )
        .add(
            OpenApiOperation::new(HttpMethod::Delete, "/v1/workspaces/{workspace}", "Workspaces/Delete")
                .named("delete_workspace", "Delete a workspace; it is archived first unless `discard` is set")
                .query::<DeleteQuery>()
                .answers::<JsonWorkspace>(202, "The request was accepted"),
            delete,
        )
        .add(
            OpenApiOperation::new(HttpMethod::Post, "/v1/workspaces/{workspace}/sleep", "Workspaces/Sleep")
                .named("sleep_workspace", "Put a workspace to sleep. Its processes end; its storage stays")
                .takes::<SleepBody>()
                .answers::<JsonWorkspace>(202, "The request was accepted"),
            sleep,
        )
        .add(
            OpenApiOperation::new(HttpMethod::Post, "/v1/workspaces/{workspace}/wake", "Workspaces/Wake")
                .named(
                    "wake_workspace",
                    "Wake a workspace. Returns before it is awake; use the watch call to follow its state",
                )
                .takes::<EmptyBody>()
                .answers::<JsonWorkspace>(202, "The request was accepted"),
            wake,
        )
        .add(
            OpenApiOperation::new(
                HttpMethod::Post,
                "/v1/workspaces/{workspace}/undelete",
                "Workspaces/Undelete",
            )
            .named(
                "undelete_workspace",
                "Take the deletion of a workspace back, until its storage is released. Does not wake \
                     the workspace",
            )
            .takes::<EmptyBody>()
            .answers::<JsonWorkspace>(200, "The workspace"),
            undelete,
        )
        .add(
            OpenApiOperation::new(
                HttpMethod::Patch,
                "/v1/workspaces/{workspace}/resources",
                "Workspaces/Resize",
            )
            .named(
                "resize_workspace",
                "Change the resources that a workspace requests of its owner's quota. An increase may \
                     wait in the admission queue",
            )
            .takes::<ResizeBody>()
            .answers::<JsonWorkspace>(200, "The workspace, with its requested and its allocated resources"),
            resize,
        )
        .add(
            OpenApiOperation::new(
                HttpMethod::Patch,
                "/v1/workspaces/{workspace}/policy",
                "Workspaces/SetPolicy",
            )
            .named(
                "set_policy",
                "Change the fields of a workspace's policy that the body contains. Takes effect at \
                     once",
            )
            .takes::<JsonPolicy>()
            .answers::<JsonWorkspace>(200, "The workspace with its new policy"),
            set_policy,
        )
        .add(
            OpenApiOperation::new(
                HttpMethod::Get,
                "/v1/workspaces/{workspace}/explanation",
                "Workspaces/Explain",
            )
            .named(
                "explain_workspace",
                "Explain the state of a workspace: its reason, the next step and its time, what a user \
                     can do, and recent decisions",
            )
            .answers::<Explanation>(200, "The explanation"),
            explain,
        )
        .add(
            OpenApiOperation::new(HttpMethod::Get, "/v1/watch", "Workspaces/Watch")
                .named(
                    "watch_workspaces",
                    "Stream the workspaces that exist, then every change. Events: `workspace` (exists or \
                     has changed), `deleted` ({\"id\"}), `synced` (all existing workspaces have been \
                     sent), and last `problem` (the control plane ends the stream). A comment after 15 s \
                     without an event keeps the stream alive",
                )
                .query::<WatchQuery>()
                .streams("Server-sent events, each with one JSON value as its data"),
            watch,
        )
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ListWorkspacesQuery {
    /// Lists the workspaces of all owners. Requires the verb `admin`.
    #[serde(default)]
    all_owners: bool,
}

/// The workspaces, sorted by name.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Workspaces")]
struct WorkspaceList {
    workspaces: Vec<JsonWorkspace>,
}

/// The workspace to create.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "CreateWorkspace")]
struct CreateBody {
    /// 1 to 63 characters of a-z, 0-9 and "-", beginning with a letter and not ending with "-".
    name: String,
    /// Name of the template. Default: the control plane's default template.
    #[serde(default)]
    template: String,
    #[serde(default, deserialize_with = "not_null")]
    policy: Option<JsonPolicy>,
    /// Idempotency key of at most 64 characters. A repeated call returns the workspace that the
    /// first call created.
    #[serde(default)]
    request_id: String,
    /// If the owner already has a workspace of this name, wakes and returns it instead of failing
    /// with NAME_TAKEN.
    #[serde(default)]
    reconnect: bool,
    /// Owner of the workspace. Default: the token's owner. Another owner requires the verb `admin`.
    #[serde(default)]
    owner: String,
    /// Variables of the workspace. They override those of the template.
    #[serde(default)]
    env: HashMap<String, String>,
    /// Resources requested while awake. An absent field has the template's value.
    #[serde(default, deserialize_with = "not_null")]
    resources: Option<ResizeBody>,
    /// Size of the volume, at least 1 MiB. Default: the template's. Not accepted by the local
    /// backend, whose workspaces have no volumes.
    #[serde(default)]
    #[schemars(range(min = 1))]
    storage_bytes: u64,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct DeleteQuery {
    /// Deletes the workspace without an archive, and deletes its existing archives. The files are
    /// lost.
    #[serde(default)]
    discard: bool,
}

/// The options of a request to sleep.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "SleepWorkspace")]
struct SleepBody {
    /// Puts the workspace to sleep even if it is in use. Otherwise such a request fails with BUSY.
    #[serde(default)]
    force: bool,
}

/// Resources that the workspace requests of its owner's quota while it is awake. An absent field
/// keeps its value, which is the template's for a new workspace.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "ResizeWorkspace")]
struct ResizeBody {
    /// Thousandths of a core; at most 1000 cores.
    #[serde(default)]
    #[schemars(range(min = 1, max = MAX_CPU_MILLIS))]
    cpu_millis: u64,
    /// From 64 MiB to 64 TiB.
    #[serde(default)]
    #[schemars(range(min = MIN_MEMORY_BYTES, max = MAX_MEMORY_BYTES))]
    memory_bytes: u64,
}

/// A workspace with its remedies and last decisions.
#[derive(Debug, Serialize, JsonSchema)]
struct Explanation {
    workspace: JsonWorkspace,
    /// Actions of a user that change what happens next.
    remedies: Vec<JsonRemedy>,
    /// The last decisions, oldest first.
    log: Vec<JsonDecision>,
}

/// A decision of the control plane about the workspace.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Decision")]
struct JsonDecision {
    at: Time,
    /// State of the workspace from this time on.
    state: String,
    reason: JsonStateReason,
}

async fn list(
    State(api): State<JsonServices>,
    Extension(caller): Extension<Principal>,
    QueryParams(query): QueryParams<ListWorkspacesQuery>,
) -> HandlerResult<Json<WorkspaceList>> {
    let request = ListWorkspacesRequest { all_owners: query.all_owners };
    let answer = api.workspaces.list(request_as(caller, request)).await?.into_inner();
    Ok(Json(WorkspaceList { workspaces: answer.workspaces.into_iter().map(Into::into).collect() }))
}

async fn create(
    State(api): State<JsonServices>,
    Extension(caller): Extension<Principal>,
    JsonBody(body): JsonBody<CreateBody>,
) -> HandlerResult<Response> {
    let request = CreateWorkspaceRequest {
        name: body.name,
        template: body.template,
        policy: body.policy.map(Into::into),
        request_id: body.request_id,
        reconnect: body.reconnect,
        owner: body.owner,
        env: body.env,
        resources: body.resources.map(Resources::from),
        storage_bytes: body.storage_bytes,
    };
    let answer = api.workspaces.create(request_as(caller, request)).await?.into_inner();
    let workspace = JsonWorkspace::from(answer.workspace);
    if !answer.created {
        return Ok(Json(workspace).into_response());
    }
    let location = [(LOCATION, format!("/v1/workspaces/{}", workspace.id))];
    Ok((StatusCode::CREATED, location, Json(workspace)).into_response())
}

async fn get(
    State(api): State<JsonServices>,
    Extension(caller): Extension<Principal>,
    PathParam(workspace): PathParam,
) -> HandlerResult<Json<JsonWorkspace>> {
    let answer =
        api.workspaces.get(request_as(caller, GetWorkspaceRequest { workspace })).await?.into_inner();
    Ok(Json(answer.workspace.into()))
}

async fn delete(
    State(api): State<JsonServices>,
    Extension(caller): Extension<Principal>,
    PathParam(workspace): PathParam,
    QueryParams(query): QueryParams<DeleteQuery>,
) -> HandlerResult<(StatusCode, Json<JsonWorkspace>)> {
    let request = DeleteWorkspaceRequest { workspace, discard: query.discard };
    let answer = api.workspaces.delete(request_as(caller, request)).await?.into_inner();
    Ok((StatusCode::ACCEPTED, Json(answer.workspace.into())))
}

async fn sleep(
    State(api): State<JsonServices>,
    Extension(caller): Extension<Principal>,
    PathParam(workspace): PathParam,
    JsonBody(body): JsonBody<SleepBody>,
) -> HandlerResult<(StatusCode, Json<JsonWorkspace>)> {
    let request = SleepWorkspaceRequest { workspace, force: body.force };
    let answer = api.workspaces.sleep(request_as(caller, request)).await?.into_inner();
    Ok((StatusCode::ACCEPTED, Json(answer.workspace.into())))
}

async fn wake(
    State(api): State<JsonServices>,
    Extension(caller): Extension<Principal>,
    PathParam(workspace): PathParam,
    JsonBody(EmptyBody {}): JsonBody<EmptyBody>,
) -> HandlerResult<(StatusCode, Json<JsonWorkspace>)> {
    let answer =
        api.workspaces.wake(request_as(caller, WakeWorkspaceRequest { workspace })).await?.into_inner();
    Ok((StatusCode::ACCEPTED, Json(answer.workspace.into())))
}

async fn undelete(
    State(api): State<JsonServices>,
    Extension(caller): Extension<Principal>,
    PathParam(workspace): PathParam,
    JsonBody(EmptyBody {}): JsonBody<EmptyBody>,
) -> HandlerResult<Json<JsonWorkspace>> {
    let request = request_as(caller, UndeleteWorkspaceRequest { workspace });
    Ok(Json(api.workspaces.undelete(request).await?.into_inner().workspace.into()))
}

async fn resize(
    State(api): State<JsonServices>,
    Extension(caller): Extension<Principal>,
    PathParam(workspace): PathParam,
    JsonBody(body): JsonBody<ResizeBody>,
) -> HandlerResult<Json<JsonWorkspace>> {
    let request = ResizeWorkspaceRequest { workspace, resources: Some(body.into()) };
    let answer = api.workspaces.resize(request_as(caller, request)).await?.into_inner();
    Ok(Json(answer.workspace.into()))
}

async fn set_policy(
    State(api): State<JsonServices>,
    Extension(caller): Extension<Principal>,
    PathParam(workspace): PathParam,
    JsonBody(policy): JsonBody<JsonPolicy>,
) -> HandlerResult<Json<JsonWorkspace>> {
    let request = SetPolicyRequest { workspace, policy: Some(policy.into()) };
    let answer = api.workspaces.set_policy(request_as(caller, request)).await?.into_inner();
    Ok(Json(answer.workspace.into()))
}

async fn explain(
    State(api): State<JsonServices>,
    Extension(caller): Extension<Principal>,
    PathParam(workspace): PathParam,
) -> HandlerResult<Json<Explanation>> {
    let answer =
        api.workspaces.explain(request_as(caller, ExplainWorkspaceRequest { workspace })).await?.into_inner();
    let remedies = answer.remedies().map(JsonRemedy::from).collect();
    Ok(Json(Explanation {
        workspace: answer.workspace.into(),
        remedies,
        log: answer.log.into_iter().map(Into::into).collect(),
    }))
}

impl From<ResizeBody> for Resources {
    fn from(body: ResizeBody) -> Self {
        Self { cpu_millis: body.cpu_millis, memory_bytes: body.memory_bytes }
    }
}

impl From<LogEntry> for JsonDecision {
    fn from(entry: LogEntry) -> Self {
        let state = enum_label(entry.state().as_str_name());
        Self {
            at: entry.at.unwrap_or_default().into(),
            state,
            reason: entry.reason.unwrap_or_default().into(),
        }
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct WatchQuery {
    /// Watches only this workspace: its id, or its name if the caller owns it. Empty: all
    /// workspaces of the caller.
    #[serde(default)]
    workspace: String,
    /// Watches the workspaces of all owners. Requires the verb `admin`.
    #[serde(default)]
    all_owners: bool,
}

async fn watch(
    State(api): State<JsonServices>,
    Extension(caller): Extension<Principal>,
    QueryParams(query): QueryParams<WatchQuery>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ProblemResponse> {
    let request = WatchWorkspacesRequest { workspace: query.workspace, all_owners: query.all_owners };
    let changes = api.workspaces.watch(request_as(caller, request)).await?.into_inner();
    Ok(Sse::new(changes.map(|change| Ok(event(change)))))
}

fn event(change: Result<WatchWorkspacesResponse, Status>) -> Event {
    let (name, data) = match change.map(|change| change.event) {
        Ok(Some(Change::Workspace(workspace))) => ("workspace", json!(JsonWorkspace::from(workspace))),
        Ok(Some(Change::Deleted(id))) => ("deleted", json!({ "id": id })),
        Ok(Some(Change::Synced(_))) => ("synced", json!({})),
        // A response of the service always contains an event.
        Ok(Some(Change::Keepalive(_)) | None) => return Event::default().comment("keep-alive"),
        Err(status) => ("problem", problem::body(&WireError::from(status))),
    };
    // Serialized JSON contains no line breaks, so the data is a single line.
    Event::default().event(name).data(data.to_string())
}
