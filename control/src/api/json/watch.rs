//! Serves changes of workspaces as server-sent events. The route is not below `/v1/workspaces`,
//! because it would hide a workspace named "watch".

use std::convert::Infallible;

use axum::{
    Extension,
    extract::{Request, State},
    response::{Sse, sse::Event},
};
use futures_util::{Stream, StreamExt};
use podling_proto::{
    control::v1::{
        WatchWorkspacesRequest, WatchWorkspacesResponse, watch_workspaces_response::Event as Change,
        workspaces_server::Workspaces,
    },
    error::WireError,
    error_response::problem,
    json::to_json,
};
use serde_json::json;
use tonic::Status;

use super::{JsonServices, ProblemResponse, operation::FieldSource, request::read_message};
use crate::{api::request_as, principal::Principal};

pub(super) async fn watch(
    State(api): State<JsonServices>,
    Extension(caller): Extension<Principal>,
    request: Request,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ProblemResponse> {
    let request = read_message::<WatchWorkspacesRequest>(request, FieldSource::Query).await?;
    let changes = api.workspaces.watch(request_as(caller, request)).await?.into_inner();
    Ok(Sse::new(changes.map(|change| Ok(event(change)))))
}

fn event(change: Result<WatchWorkspacesResponse, Status>) -> Event {
    let (name, data) = match change.map(|change| change.event) {
        Ok(Some(Change::Workspace(workspace))) => ("workspace", to_json(&workspace)),
        Ok(Some(Change::Deleted(id))) => ("deleted", json!({ "id": id })),
        Ok(Some(Change::Synced(_))) => ("synced", json!({})),
        // A response of the service always contains an event.
        Ok(Some(Change::Keepalive(_)) | None) => return Event::default().comment("keep-alive"),
        Err(status) => ("problem", problem(&WireError::from(status))),
    };
    // Serialized JSON contains no line breaks, so the data is a single line.
    Event::default().event(name).data(data.to_string())
}
