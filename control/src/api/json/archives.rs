//! The archive routes. Each handler calls one RPC of the WorkspaceArchives service.

use axum::{Extension, Json, extract::State};
use http::StatusCode;
use podling_proto::control::v1::{
    self as proto, ListWorkspaceArchivesRequest, RestoreArchiveRequest,
    workspace_archives_server::WorkspaceArchives,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    JsonServices, ProblemResponse,
    request::{JsonBody, PathParam, QueryParams, Time},
    routes::{HttpMethod, OpenApiOperation, Routes},
    workspace::JsonWorkspace,
};
use crate::{api::request_as, principal::Principal};

/// Adds the archive routes, each with its description.
pub(crate) fn routes(routes: Routes) -> Routes {
    routes
        .add(
            OpenApiOperation::new(HttpMethod::Get, "/v1/archives", "WorkspaceArchives/List")
                .named("list_archives", "List archives, newest first, including those of deleted workspaces")
                .query::<ListArchivesQuery>()
                .answers::<ArchiveList>(200, "The archives"),
            list_archives,
        )
        .add(
            OpenApiOperation::new(
                HttpMethod::Post,
                "/v1/archives/{archive}/restore",
                "WorkspaceArchives/Restore",
            )
            .named(
                "restore_archive",
                "Restore an archived or deleted workspace. With `name`, restore into a new workspace",
            )
            .takes::<RestoreBody>()
            .answers::<JsonWorkspace>(202, "The workspace; the watch call follows its state"),
            restore_archive,
        )
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ListArchivesQuery {
    /// Lists only the archives of this workspace: its id, or its name if the caller owns it. Empty:
    /// all workspaces.
    #[serde(default)]
    workspace: String,
    /// Lists the archives of all owners. Requires the verb `admin`.
    #[serde(default)]
    all_owners: bool,
}

/// The archives, newest first.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "WorkspaceArchives")]
struct ArchiveList {
    archives: Vec<JsonArchive>,
}

/// An archive of a workspace's files. It was read back and compared when it was made.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "WorkspaceArchive")]
struct JsonArchive {
    /// Name of the archive in the backup store: "workspace-{id}-{YYYYMMDD-HHMMSS}".
    key: String,
    workspace_id: String,
    workspace_name: String,
    owner: String,
    template: String,
    created: Time,
    /// Estimated time of removal. Retention advances only while the control plane runs, so downtime
    /// delays the removal.
    expires: Time,
    /// Number of files, directories, links and FIFOs in the zip.
    entries: u64,
    /// Number of sockets and devices that were left out, because a zip cannot hold them. The
    /// manifest beside the zip lists them.
    left_out: u64,
    /// Size of the files in bytes, before compression.
    bytes: u64,
    /// Size of the zip in bytes.
    archive_bytes: u64,
    /// This is the newest archive of a workspace without storage, so its files exist only here.
    only_copy: bool,
    /// The workspace was deleted.
    deleted: bool,
}

/// The options of a restore.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "RestoreArchive")]
struct RestoreBody {
    /// Name of a new workspace that gets the archive's files, and the owner and settings of the
    /// archived workspace. Empty: restores the archived workspace itself, which must have no
    /// storage.
    #[serde(default)]
    name: String,
    /// Idempotency key for a new workspace, of at most 64 characters. A repeated call returns the
    /// workspace that the first call created.
    #[serde(default)]
    request_id: String,
}

async fn list_archives(
    State(api): State<JsonServices>,
    Extension(caller): Extension<Principal>,
    QueryParams(query): QueryParams<ListArchivesQuery>,
) -> Result<Json<ArchiveList>, ProblemResponse> {
    let request = ListWorkspaceArchivesRequest { workspace: query.workspace, all_owners: query.all_owners };
    let answer = api.archives.list(request_as(caller, request)).await?.into_inner();
    Ok(Json(ArchiveList { archives: answer.archives.into_iter().map(Into::into).collect() }))
}

async fn restore_archive(
    State(api): State<JsonServices>,
    Extension(caller): Extension<Principal>,
    PathParam(archive): PathParam,
    JsonBody(body): JsonBody<RestoreBody>,
) -> Result<(StatusCode, Json<JsonWorkspace>), ProblemResponse> {
    let request = RestoreArchiveRequest { archive, name: body.name, request_id: body.request_id };
    let answer = api.archives.restore(request_as(caller, request)).await?.into_inner();
    Ok((StatusCode::ACCEPTED, Json(answer.workspace.into())))
}

impl From<proto::WorkspaceArchive> for JsonArchive {
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
            left_out: archive.left_out,
            bytes: archive.bytes,
            archive_bytes: archive.archive_bytes,
            only_copy: archive.only_copy,
            deleted: archive.deleted,
        }
    }
}
