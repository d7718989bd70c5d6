//! Serves changes of workspaces as server-sent events. The route is not below `/v1/workspaces`,
//! because it would hide a workspace named "watch".

use std::convert::Infallible;

use axum::{
    Extension,
    extract::State,
    response::{Sse, sse::Event},
};
use futures_util::{Stream, StreamExt};
use podling_proto::{
    control::v1::{
        WatchWorkspacesRequest, WatchWorkspacesResponse, watch_workspaces_response::Event as Change,
        workspaces_server::Workspaces,
    },
    error::WireError,
    problem,
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;
use tonic::Status;

use super::{
    JsonServices, problem_response::ProblemResponse, request::QueryParams, workspace::JsonWorkspace,
};
use crate::{api::request_as, principal::Principal};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct WatchQuery {
    /// Watches only this workspace: its id, or its name if the caller owns it. Empty: all
    /// workspaces of the caller.
    #[serde(default)]
    workspace: String,
    /// Watches the workspaces of all owners. Requires the verb `admin`.
    #[serde(default)]
    all_owners: bool,
}

pub(super) async fn watch(
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
