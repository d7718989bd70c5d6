//! The routes of backups: JSON to the message of an RPC, and its answer to JSON.

use axum::{Extension, Json, extract::State};
use http::StatusCode;
use podling_proto::control::v1::{
    self as proto, ListBackupsRequest, RestoreBackupRequest, backups_server::Backups,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Api,
    refusal::Refusal,
    request::{Body, Place, Query},
    scalar::Time,
    workspace::Workspace,
};
use crate::{api::by, caller::Caller};

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
#[schemars(rename = "Backups")]
pub(super) struct List {
    backups: Vec<Backup>,
}

/// An archive of a workspace, proven when it was made.
#[derive(Debug, Serialize, JsonSchema)]
struct Backup {
    /// Names it in the backup store.
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

/// What becomes of a backup.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "RestoreBackup")]
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
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Query(query): Query<ListQuery>,
) -> Result<Json<List>, Refusal> {
    let request = ListBackupsRequest { workspace: query.workspace, all_owners: query.all_owners };
    let answer = api.backups.list(by(caller, request)).await?.into_inner();
    Ok(Json(List { backups: answer.backups.into_iter().map(Into::into).collect() }))
}

pub(super) async fn restore(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Place(backup): Place,
    Body(body): Body<Restore>,
) -> Result<(StatusCode, Json<Workspace>), Refusal> {
    let request = RestoreBackupRequest { backup, name: body.name, request_id: body.request_id };
    let answer = api.backups.restore(by(caller, request)).await?.into_inner();
    Ok((StatusCode::ACCEPTED, Json(answer.workspace.into())))
}

impl From<proto::Backup> for Backup {
    fn from(backup: proto::Backup) -> Self {
        Self {
            key: backup.key,
            workspace_id: backup.workspace_id,
            workspace_name: backup.workspace_name,
            owner: backup.owner,
            template: backup.template,
            created: backup.created.unwrap_or_default().into(),
            expires: backup.expires.unwrap_or_default().into(),
            entries: backup.entries,
            bytes: backup.bytes,
            archive_bytes: backup.archive_bytes,
            only_copy: backup.only_copy,
            deleted: backup.deleted,
        }
    }
}
