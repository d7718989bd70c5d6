//! The routes of archives: JSON to the message of an RPC, and its answer to JSON.

use axum::{Extension, Json, extract::State};
use http::StatusCode;
use podling_proto::control::v1::{
    self as proto, ListWorkspaceArchivesRequest, RestoreArchiveRequest,
    workspace_archives_server::WorkspaceArchives,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    JsonServices,
    problem_response::ProblemResponse,
    request::{JsonBody, PathParam, QueryParams},
    scalar::Time,
    workspace::Workspace,
};
use crate::{api::request_as, principal::Principal};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    /// Id, or name of one of the caller's own; empty: all.
    #[serde(default)]
    workspace: String,
    /// Only with `admin`: of all owners.
    #[serde(default)]
    all_owners: bool,
}

/// Newest first.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "WorkspaceArchives")]
pub(super) struct List {
    archives: Vec<WorkspaceArchive>,
}

/// An archive of a workspace, proven when it was made.
#[derive(Debug, Serialize, JsonSchema)]
struct WorkspaceArchive {
    /// Names it in the archive store.
    key: String,
    workspace_id: String,
    workspace_name: String,
    owner: String,
    template: String,
    created: Time,
    /// When it is removed if the control plane runs all the time; only time that it runs counts.
    expires: Time,
    /// Files, folders and links in it.
    entries: u64,
    /// Of the files in it.
    bytes: u64,
    /// Of the zip.
    archive_bytes: u64,
    /// The workspace has no storage: this is all that is left of it (if it is its newest).
    only_copy: bool,
    /// The workspace was deleted.
    deleted: bool,
}

/// What becomes of a archive.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "RestoreArchive")]
pub(super) struct Restore {
    /// Empty: the workspace it was made of comes back itself, which needs that only the archive is left of it. Else: the name of a
    /// new workspace of the same owner and template.
    #[serde(default)]
    name: String,
    /// For the new workspace; at most 64 characters; a repeat answers with the workspace made by the first call.
    #[serde(default)]
    request_id: String,
}

pub(super) async fn list(
    State(api): State<JsonServices>,
    Extension(caller): Extension<Principal>,
    QueryParams(query): QueryParams<ListQuery>,
) -> Result<Json<List>, ProblemResponse> {
    let request = ListWorkspaceArchivesRequest { workspace: query.workspace, all_owners: query.all_owners };
    let answer = api.archives.list(request_as(caller, request)).await?.into_inner();
    Ok(Json(List { archives: answer.archives.into_iter().map(Into::into).collect() }))
}

pub(super) async fn restore(
    State(api): State<JsonServices>,
    Extension(caller): Extension<Principal>,
    PathParam(archive): PathParam,
    JsonBody(body): JsonBody<Restore>,
) -> Result<(StatusCode, Json<Workspace>), ProblemResponse> {
    let request = RestoreArchiveRequest { archive, name: body.name, request_id: body.request_id };
    let answer = api.archives.restore(request_as(caller, request)).await?.into_inner();
    Ok((StatusCode::ACCEPTED, Json(answer.workspace.into())))
}

impl From<proto::WorkspaceArchive> for WorkspaceArchive {
    fn from(archive: proto::WorkspaceArchive) -> Self {
        Self {
            key: archive.key,
            workspace_id: archive.workspace_id,
            workspace_name: archive.workspace_name,
            owner: archive.owner,
            template: archive.template,
            created: archive.created.unwrap_or_default().into(),
            expires: archive.expires.unwrap_or_default().into(),
            entries: archive.entries,
            bytes: archive.bytes,
            archive_bytes: archive.archive_bytes,
            only_copy: archive.only_copy,
            deleted: archive.deleted,
        }
    }
}
