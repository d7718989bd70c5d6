//! The WorkspaceArchives service. It translates requests for the driver and renders snapshots. It
//! never waits for the backup store.

use std::{sync::Arc, time::Duration};

use podling_core::{archive::Archive, id::InvalidIdentifier, workspace::State};
use podling_proto::{
    control::v1::{
        ListWorkspaceArchivesRequest, ListWorkspaceArchivesResponse, RestoreArchiveRequest,
        RestoreArchiveResponse, WorkspaceArchive, workspace_archives_server::WorkspaceArchives,
    },
    error::{Reason, WireError},
    v1::Verb,
};
use tonic::{Request, Response, Status};

use super::{
    caller,
    workspaces::convert::{check_request_id, workspace},
};
use crate::{
    clock,
    driver::{DriverHandle, NewWorkspace},
    principal::Principal,
    reasons::timestamp,
    snapshot::WorkspaceView,
};

#[derive(Debug, Clone)]
pub struct WorkspaceArchivesService {
    driver: DriverHandle,
}

impl WorkspaceArchivesService {
    pub fn new(driver: DriverHandle) -> Self {
        Self { driver }
    }

    /// Finds an archive by its key. The id or name of a workspace stands for its newest archive.
    fn find(&self, caller: &Principal, text: &str) -> Result<(Arc<WorkspaceView>, Archive), WireError> {
        let (view, keyed) = self.find_workspace(caller, text).map_err(|error| match error.reason() {
            Reason::WorkspaceNotFound => {
                let message =
                    format!("no archive has the key {text:?}, and no workspace has this name or id");
                WireError::new(Reason::ArchiveNotFound, message)
            }
            _ => error,
        })?;
        let archive = keyed.or_else(|| view.archives.last().cloned()).ok_or_else(|| {
            let message = format!("there is no archive of {:?}", view.spec.name.as_str());
            WireError::new(Reason::ArchiveNotFound, message).with("id", &view.spec.id)
        })?;
        Ok((view, archive))
    }

    /// Finds a workspace by its id, its name or the key of one of its archives. Returns the archive
    /// with that key.
    fn find_workspace(
        &self,
        caller: &Principal,
        text: &str,
    ) -> Result<(Arc<WorkspaceView>, Option<Archive>), WireError> {
        let snapshots = self.driver.snapshots();
        let snapshot = snapshots.borrow();
        let mut seen = snapshot.workspaces.values().filter(|view| caller.sees(view));
        let keyed = seen.find_map(|view| {
            let archive = view.archives.iter().find(|archive| archive.key.0 == text)?;
            Some((view.clone(), Some(archive.clone())))
        });
        if let Some(found) = keyed {
            return Ok(found);
        }
        let view = match caller.find_named(&snapshot, &caller.owner, text) {
            Ok(view) => view.clone(),
            // A deleted workspace no longer owns its name, but is still found by it. If the name
            // was reused, the workspace that was deleted last is chosen.
            Err(error) => {
                let mut gone: Vec<_> = snapshot
                    .workspaces
                    .values()
                    .filter(|v| caller.sees(v) && v.is_gone() && v.spec.owner == caller.owner)
                    .filter(|v| v.spec.name.as_str() == text)
                    .collect();
                gone.sort_by_key(|view| view.since);
                gone.last().map(|view| Arc::clone(view)).ok_or(error)?
            }
        };
        Ok((view, None))
    }
}

#[tonic::async_trait]
impl WorkspaceArchives for WorkspaceArchivesService {
    async fn list(
        &self,
        request: Request<ListWorkspaceArchivesRequest>,
    ) -> Result<Response<ListWorkspaceArchivesResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        if request.all_owners {
            caller.may(Verb::Admin)?;
        }
        let only = match request.workspace.as_str() {
            "" => None,
            text => Some(self.find_workspace(&caller, text)?.0.spec.id.clone()),
        };
        let snapshot = self.driver.snapshots().borrow().clone();
        let shown = |view: &&Arc<WorkspaceView>| {
            caller.sees(view)
                && match &only {
                    Some(id) => view.spec.id == *id,
                    None => request.all_owners || view.spec.owner == caller.owner,
                }
        };
        let of = |view: &Arc<WorkspaceView>| {
            view.archives
                .iter()
                .map(|archive| (archive.at, workspace_archive(view, archive, snapshot.observed_time)))
                .collect::<Vec<_>>()
        };
        let mut archives: Vec<_> = snapshot.workspaces.values().filter(shown).flat_map(of).collect();
        archives.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        let archives = archives.into_iter().map(|(_, archive)| archive).collect();
        Ok(Response::new(ListWorkspaceArchivesResponse { archives }))
    }

    async fn restore(
        &self,
        request: Request<RestoreArchiveRequest>,
    ) -> Result<Response<RestoreArchiveResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let (view, archive) = self.find(&caller, &request.archive)?;
        let restored = if request.name.is_empty() {
            if view.archives.last().is_none_or(|newest| newest.key != archive.key) {
                let message = "this is not the newest archive of the workspace; give a name to restore it \
                    into a new workspace";
                return Err(WireError::new(Reason::NotArchived, message).with("id", &view.spec.id).into());
            }
            self.driver.restore(view.spec.id.clone()).await.map_err(WireError::from)?
        } else {
            let new = new_workspace(&caller, &view, archive, request)?;
            self.driver.create(new).await.map_err(WireError::from)?.0
        };
        Ok(Response::new(RestoreArchiveResponse { workspace: Some(workspace(&restored)) }))
    }
}

/// Builds the request for a new workspace with the settings of the archived one and the archive's
/// files.
fn new_workspace(
    caller: &Principal,
    view: &WorkspaceView,
    archive: Archive,
    request: RestoreArchiveRequest,
) -> Result<NewWorkspace, WireError> {
    if caller.workspaces.is_some() {
        let message = "this token is restricted to certain workspaces and cannot create others";
        return Err(WireError::new(Reason::WorkspaceDenied, message));
    }
    check_request_id(&request.request_id)?;
    let old = &view.spec;
    Ok(NewWorkspace {
        owner: old.owner.clone(),
        name: request.name.parse().map_err(|e: InvalidIdentifier| WireError::bad_field("name", e))?,
        template: old.template.clone(),
        command: old.command.clone(),
        env: old.env.clone(),
        policy: old.policy.clone(),
        resources: old.resources,
        storage_bytes: old.storage_bytes,
        source: Some(archive.key),
        request_id: request.request_id,
        reconnect: false,
    })
}

fn workspace_archive(view: &WorkspaceView, archive: &Archive, observed_time: Duration) -> WorkspaceArchive {
    let age = observed_time.saturating_sub(archive.observed_time);
    let left = view.spec.policy.keep_archives.saturating_sub(age);
    let newest = view.archives.last().is_some_and(|last| last.generation == archive.generation);
    WorkspaceArchive {
        key: archive.key.0.clone(),
        workspace_id: view.spec.id.to_string(),
        workspace_name: view.spec.name.to_string(),
        owner: view.spec.owner.to_string(),
        template: view.spec.template.clone(),
        created: Some(timestamp(archive.at)),
        expires: Some(timestamp(clock::now().plus(left))),
        entries: archive.entries,
        left_out: archive.left_out,
        bytes: archive.bytes,
        archive_bytes: archive.archive_bytes,
        only_copy: newest && view.state == State::Archived,
        deleted: view.is_gone(),
    }
}
