//! The Workspaces service. It translates requests for the driver and renders snapshots.

mod explain;
mod parse;
pub(super) mod show;
mod watch;

use std::{pin::Pin, sync::Arc};

use futures_util::{Stream, StreamExt};
use podling_proto::{
    control::v1::{
        CreateWorkspaceRequest, CreateWorkspaceResponse, DeleteWorkspaceRequest, DeleteWorkspaceResponse,
        DownRequest, DownResponse, ExplainWorkspaceRequest, ExplainWorkspaceResponse, GetWorkspaceRequest,
        GetWorkspaceResponse, ListWorkspacesRequest, ListWorkspacesResponse, ResizeWorkspaceRequest,
        ResizeWorkspaceResponse, SetPolicyRequest, SetPolicyResponse, SleepWorkspaceRequest,
        SleepWorkspaceResponse, UndeleteWorkspaceRequest, UndeleteWorkspaceResponse, WakeWorkspaceRequest,
        WakeWorkspaceResponse, WatchWorkspacesRequest, WatchWorkspacesResponse,
        workspaces_server::Workspaces,
    },
    error::{Reason, WireError},
    v1::Verb,
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use self::{parse::WorkspaceScope, show::workspace};
use super::caller;
use crate::{driver::DriverHandle, principal::Principal, snapshot::WorkspaceView, template::TemplateSource};

/// Most concurrent watches of all callers together. Further watches fail with TOO_MANY_STREAMS.
/// Each takes about 100 bytes of memory for each workspace that it covers.
const MAX_WATCHERS: usize = 1000;

#[derive(Debug, Clone)]
pub struct WorkspacesService {
    driver: DriverHandle,
    templates: TemplateSource,
    watchers: Arc<Semaphore>,
    closing: CancellationToken,
}

type ResponseStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl WorkspacesService {
    /// Creates the service. Its streams end when `closing` is cancelled.
    pub fn new(driver: DriverHandle, templates: TemplateSource, closing: CancellationToken) -> Self {
        Self { driver, templates, watchers: Arc::new(Semaphore::new(MAX_WATCHERS)), closing }
    }

    /// Finds a workspace by its id, or by its name among the caller's own workspaces. A workspace
    /// that the caller may not see is treated as not found.
    fn find(&self, caller: &Principal, text: &str) -> Result<Arc<WorkspaceView>, WireError> {
        let snapshots = self.driver.snapshots();
        let snapshot = snapshots.borrow();
        caller.find_named(&snapshot, &caller.owner, text).cloned()
    }
}

#[tonic::async_trait]
impl Workspaces for WorkspacesService {
    async fn create(
        &self,
        request: Request<CreateWorkspaceRequest>,
    ) -> Result<Response<CreateWorkspaceResponse>, Status> {
        let caller = caller(&request)?;
        let templates = self.templates.current().await.map_err(WireError::from)?;
        let new = parse::create(&caller, request.into_inner(), &templates)?;
        let (view, created) = if caller.workspaces.is_some() {
            // A restricted token could not see a workspace that it creates. Therefore it only wakes
            // a workspace that it sees. `wake` creates none, even if that workspace is deleted
            // meanwhile.
            let found = self.driver.snapshots().borrow().by_name(&new.owner, &new.name).cloned();
            let own = found.filter(|view| new.reconnect && caller.sees(view)).ok_or_else(|| {
                let message = "this token is restricted to certain workspaces and cannot create others";
                WireError::new(Reason::WorkspaceDenied, message)
            })?;
            (self.driver.wake(own.spec.id.clone()).await.map_err(WireError::from)?, false)
        } else {
            self.driver.create(new).await.map_err(WireError::from)?
        };
        Ok(Response::new(CreateWorkspaceResponse { workspace: Some(workspace(&view)), created }))
    }

    async fn get(
        &self,
        request: Request<GetWorkspaceRequest>,
    ) -> Result<Response<GetWorkspaceResponse>, Status> {
        let view = self.find(&caller(&request)?, &request.get_ref().workspace)?;
        Ok(Response::new(GetWorkspaceResponse { workspace: Some(workspace(&view)) }))
    }

    async fn list(
        &self,
        request: Request<ListWorkspacesRequest>,
    ) -> Result<Response<ListWorkspacesResponse>, Status> {
        let whose = WorkspaceScope::parse(caller(&request)?, request.get_ref().all_owners)?;
        let snapshot = self.driver.snapshots().borrow().clone();
        let mut seen: Vec<_> = snapshot.workspaces.values().filter(|view| whose.sees(view)).collect();
        seen.sort_by(|a, b| (&a.spec.name, &a.spec.owner).cmp(&(&b.spec.name, &b.spec.owner)));
        let workspaces = seen.into_iter().map(|view| workspace(view)).collect();
        Ok(Response::new(ListWorkspacesResponse { workspaces }))
    }

    type WatchStream = ResponseStream<WatchWorkspacesResponse>;

    async fn watch(
        &self,
        request: Request<WatchWorkspacesRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let (only, whose) = match request.workspace.as_str() {
            "" => (None, WorkspaceScope::parse(caller, request.all_owners)?),
            text => (Some(self.find(&caller, text)?.spec.id.clone()), WorkspaceScope::visible(caller)),
        };
        let permit = self.watchers.clone().try_acquire_owned().map_err(|_| {
            WireError::new(
                Reason::TooManyStreams,
                format!("{MAX_WATCHERS} watches of all callers are already open; retry later"),
            )
            .with("limit", MAX_WATCHERS)
            .with("what", "watches")
        })?;
        let watch_events = watch::watch_events(self.driver.snapshots(), whose, only, self.closing.clone());
        Ok(Response::new(Box::pin(watch_events.map(move |change| {
            let _held = &permit;
            change
        }))))
    }

    async fn delete(
        &self,
        request: Request<DeleteWorkspaceRequest>,
    ) -> Result<Response<DeleteWorkspaceResponse>, Status> {
        let view = self.find(&caller(&request)?, &request.get_ref().workspace)?;
        let (id, discard) = (view.spec.id.clone(), request.get_ref().discard);
        let view = self.driver.delete(id, discard).await.map_err(WireError::from)?;
        Ok(Response::new(DeleteWorkspaceResponse { workspace: Some(workspace(&view)) }))
    }

    async fn undelete(
        &self,
        request: Request<UndeleteWorkspaceRequest>,
    ) -> Result<Response<UndeleteWorkspaceResponse>, Status> {
        let view = self.find(&caller(&request)?, &request.get_ref().workspace)?;
        let view = self.driver.undelete(view.spec.id.clone()).await.map_err(WireError::from)?;
        Ok(Response::new(UndeleteWorkspaceResponse { workspace: Some(workspace(&view)) }))
    }

    async fn sleep(
        &self,
        request: Request<SleepWorkspaceRequest>,
    ) -> Result<Response<SleepWorkspaceResponse>, Status> {
        let view = self.find(&caller(&request)?, &request.get_ref().workspace)?;
        let (id, force) = (view.spec.id.clone(), request.get_ref().force);
        let view = self.driver.sleep(id, force).await.map_err(WireError::from)?;
        Ok(Response::new(SleepWorkspaceResponse { workspace: Some(workspace(&view)) }))
    }

    async fn wake(
        &self,
        request: Request<WakeWorkspaceRequest>,
    ) -> Result<Response<WakeWorkspaceResponse>, Status> {
        let view = self.find(&caller(&request)?, &request.get_ref().workspace)?;
        let view = self.driver.wake(view.spec.id.clone()).await.map_err(WireError::from)?;
        Ok(Response::new(WakeWorkspaceResponse { workspace: Some(workspace(&view)) }))
    }

    async fn resize(
        &self,
        request: Request<ResizeWorkspaceRequest>,
    ) -> Result<Response<ResizeWorkspaceResponse>, Status> {
        let view = self.find(&caller(&request)?, &request.get_ref().workspace)?;
        let resources = request.into_inner().resources.unwrap_or_default();
        let resources = parse::resources(view.spec.resources, resources)?;
        let view = self.driver.resize(view.spec.id.clone(), resources).await.map_err(WireError::from)?;
        Ok(Response::new(ResizeWorkspaceResponse { workspace: Some(workspace(&view)) }))
    }

    async fn set_policy(
        &self,
        request: Request<SetPolicyRequest>,
    ) -> Result<Response<SetPolicyResponse>, Status> {
        let view = self.find(&caller(&request)?, &request.get_ref().workspace)?;
        let policy = parse::policy(request.into_inner().policy.unwrap_or_default())?;
        parse::requested_policy(&view.spec.policy, &policy)?;
        let view = self.driver.set_policy(view.spec.id.clone(), policy).await.map_err(WireError::from)?;
        Ok(Response::new(SetPolicyResponse { workspace: Some(workspace(&view)) }))
    }

    async fn explain(
        &self,
        request: Request<ExplainWorkspaceRequest>,
    ) -> Result<Response<ExplainWorkspaceResponse>, Status> {
        let view = self.find(&caller(&request)?, &request.get_ref().workspace)?;
        Ok(Response::new(explain::explain(&view)))
    }

    type DownStream = ResponseStream<DownResponse>;

    async fn down(&self, request: Request<DownRequest>) -> Result<Response<Self::DownStream>, Status> {
        let caller = caller(&request)?;
        caller.may(Verb::Admin)?;
        if caller.workspaces.is_some() {
            let message = "this token is restricted to certain workspaces and cannot stop all of them";
            return Err(WireError::new(Reason::WorkspaceDenied, message).into());
        }
        let snapshots = self.driver.snapshots();
        self.driver.down(request.get_ref().force).await.map_err(WireError::from)?;
        Ok(Response::new(Box::pin(watch::down_progress(snapshots))))
    }
}
