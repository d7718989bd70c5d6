//! The Workspaces service. It translates requests for the driver and renders snapshots.
//!
//! A watcher compares the newest snapshot with the versions that it has sent. A slow watcher skips
//! intermediate versions and delays no other watcher.

pub(super) mod convert;

use std::{
    collections::{BTreeMap, VecDeque},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures_util::{Stream, StreamExt, stream};
use podling_core::{
    id::WorkspaceId,
    reason::StateReason,
    workspace::{DesiredState, State},
};
use podling_proto::{
    control::v1::{
        CreateWorkspaceRequest, CreateWorkspaceResponse, DeleteWorkspaceRequest, DeleteWorkspaceResponse,
        DownRequest, DownResponse, ExplainWorkspaceRequest, ExplainWorkspaceResponse, GetWorkspaceRequest,
        GetWorkspaceResponse, ListWorkspacesRequest, ListWorkspacesResponse, LogEntry, Remedy,
        ResizeWorkspaceRequest, ResizeWorkspaceResponse, SetPolicyRequest, SetPolicyResponse,
        SleepWorkspaceRequest, SleepWorkspaceResponse, UndeleteWorkspaceRequest, UndeleteWorkspaceResponse,
        WakeWorkspaceRequest, WakeWorkspaceResponse, WatchKeepAlive, WatchSynced, WatchWorkspacesRequest,
        WatchWorkspacesResponse, watch_workspaces_response::Event, workspaces_server::Workspaces,
    },
    error::{Reason, WireError},
    v1::Verb,
};
use tokio::{sync::Semaphore, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use self::convert::{WorkspaceScope, state, workspace};
use super::caller;
use crate::{
    driver::DriverHandle,
    principal::Principal,
    reasons,
    snapshot::{Snapshot, SnapshotReceiver, WorkspaceView},
    template::TemplateSource,
};

/// Most concurrent watches of all callers together. Further watches fail with TOO_MANY_STREAMS.
/// Each takes about 100 bytes of memory for each workspace that it covers.
const MAX_WATCHERS: usize = 1000;
/// Longest silence of the stream before a keep-alive event. Proxies close streams that are silent
/// for a minute.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

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
        let new = convert::create(&caller, request.into_inner(), &templates)?;
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
        let watch_events = watch_events(self.driver.snapshots(), whose, only, self.closing.clone());
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
        let overrides = convert::resource_overrides(resources);
        convert::requested_resources(view.spec.resources, resources)?;
        let view = self.driver.resize(view.spec.id.clone(), overrides).await.map_err(WireError::from)?;
        Ok(Response::new(ResizeWorkspaceResponse { workspace: Some(workspace(&view)) }))
    }

    async fn set_policy(
        &self,
        request: Request<SetPolicyRequest>,
    ) -> Result<Response<SetPolicyResponse>, Status> {
        let view = self.find(&caller(&request)?, &request.get_ref().workspace)?;
        let policy = convert::policy_overrides(request.into_inner().policy.unwrap_or_default())?;
        convert::requested_policy(&view.spec.policy, &policy)?;
        let view = self.driver.set_policy(view.spec.id.clone(), policy).await.map_err(WireError::from)?;
        Ok(Response::new(SetPolicyResponse { workspace: Some(workspace(&view)) }))
    }

    async fn explain(
        &self,
        request: Request<ExplainWorkspaceRequest>,
    ) -> Result<Response<ExplainWorkspaceResponse>, Status> {
        let view = self.find(&caller(&request)?, &request.get_ref().workspace)?;
        Ok(Response::new(explain(&view)))
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
        Ok(Response::new(Box::pin(down_progress(snapshots))))
    }
}

fn explain(view: &WorkspaceView) -> ExplainWorkspaceResponse {
    let entry = |entry: &crate::store::LogEntry| LogEntry {
        at: Some(reasons::timestamp(entry.at)),
        state: state(entry.state).into(),
        reason: Some(reasons::state_reason(&entry.reason)),
    };
    ExplainWorkspaceResponse {
        workspace: Some(workspace(view)),
        remedies: remedies(view).iter().map(|&remedy| remedy.into()).collect(),
        log: view.log.iter().map(entry).collect(),
    }
}

/// Returns what a user can do to change what happens next.
fn remedies(view: &WorkspaceView) -> &'static [Remedy] {
    match (view.state, view.spec.desired_state) {
        (_, DesiredState::Discarded) | (State::Deleting, _) => &[],
        (State::Archived, DesiredState::Deleted) => &[Remedy::Restore],
        (_, DesiredState::Deleted) => match (is_failing(view), view.undelete) {
            (true, true) => &[Remedy::RemoveCause, Remedy::Undelete, Remedy::Discard],
            (false, true) => &[Remedy::Undelete, Remedy::Discard],
            (true, false) => &[Remedy::RemoveCause, Remedy::RepairVolume, Remedy::Discard],
            (false, false) => &[Remedy::RepairVolume, Remedy::Discard],
        },
        (State::Awake, _) => &[Remedy::Use, Remedy::KeepAwake, Remedy::Sleep],
        (State::FallingAsleep, _) => &[Remedy::WakeAfterSleep],
        (State::Asleep, _) if is_failing(view) => &[Remedy::RemoveCause, Remedy::Wake],
        (State::Asleep, _) => &[Remedy::Wake],
        (State::Archiving | State::Archived, _) if is_failing(view) => {
            &[Remedy::RemoveCause, Remedy::WakeRetries]
        }
        (State::Archiving, _) => &[Remedy::WakeStopsArchiving],
        (State::Archived, _) => &[Remedy::WakeRestores],
        (State::Queued, _) => &[Remedy::FreeQuota],
        (State::Starting | State::Failed, _) => &[Remedy::WakeRetries],
    }
}

/// Returns whether archiving or restoring failed last, and is retried.
fn is_failing(view: &WorkspaceView) -> bool {
    matches!(view.reason, StateReason::ArchiveFailed { .. } | StateReason::RestoreFailed { .. })
}

struct WorkspaceWatch {
    snapshots: SnapshotReceiver,
    whose: WorkspaceScope,
    only: Option<WorkspaceId>,
    closing: CancellationToken,
    /// Version of each workspace that the stream has sent last.
    sent_versions: BTreeMap<WorkspaceId, u64>,
    /// Events of one snapshot that have not been sent yet.
    events: VecDeque<Event>,
    synced: bool,
    ended: bool,
}

/// Yields the workspaces that exist, then every change, until `closing` is cancelled.
fn watch_events(
    mut snapshots: SnapshotReceiver,
    whose: WorkspaceScope,
    only: Option<WorkspaceId>,
    closing: CancellationToken,
) -> impl Stream<Item = Result<WatchWorkspacesResponse, Status>> {
    snapshots.mark_changed();
    let (sent_versions, events) = (BTreeMap::new(), VecDeque::new());
    let watcher = WorkspaceWatch {
        snapshots,
        whose,
        only,
        closing,
        sent_versions,
        events,
        synced: false,
        ended: false,
    };
    stream::unfold(watcher, |mut watcher| async move {
        let next = watcher.next().await?;
        Some((next, watcher))
    })
}

impl WorkspaceWatch {
    async fn next(&mut self) -> Option<Result<WatchWorkspacesResponse, Status>> {
        loop {
            if self.ended {
                return None;
            }
            if let Some(event) = self.events.pop_front() {
                return Some(Ok(WatchWorkspacesResponse { event: Some(event) }));
            }
            let changed = tokio::select! {
                () = self.closing.cancelled() => None,
                changed = timeout(KEEP_ALIVE, self.snapshots.changed()) => Some(changed),
            };
            match changed {
                Some(Ok(Ok(()))) => {
                    let snapshot = self.snapshots.borrow_and_update().clone();
                    self.compare(&snapshot);
                }
                Some(Err(_)) => self.events.push_back(Event::Keepalive(WatchKeepAlive {})),
                // The driver or the control plane is shutting down.
                Some(Ok(Err(_))) | None => {
                    self.ended = true;
                    let error = WireError::new(Reason::ShuttingDown, "the control plane is shutting down");
                    return Some(Err(error.into()));
                }
            }
        }
    }

    fn compare(&mut self, snapshot: &Snapshot) {
        let is_watched = |id: &WorkspaceId| self.only.as_ref().is_none_or(|only| only == id);
        for (id, view) in &snapshot.workspaces {
            if is_watched(id) && self.whose.sees(view) && self.sent_versions.get(id) != Some(&view.version) {
                self.sent_versions.insert(id.clone(), view.version);
                self.events.push_back(Event::Workspace(workspace(view)));
            }
        }
        // A workspace of which only archives are left is reported as deleted.
        let is_there = |id: &WorkspaceId| snapshot.get(id).is_some_and(|view| self.whose.sees(view));
        let deleted: Vec<_> = self.sent_versions.keys().filter(|id| !is_there(id)).cloned().collect();
        for id in deleted {
            self.sent_versions.remove(&id);
            self.events.push_back(Event::Deleted(id.to_string()));
        }
        if !std::mem::replace(&mut self.synced, true) {
            self.events.push_back(Event::Synced(WatchSynced {}));
        }
    }
}

/// Yields the progress of `down` until no process of a workspace is left.
fn down_progress(snapshots: SnapshotReceiver) -> impl Stream<Item = Result<DownResponse, Status>> {
    stream::unfold(Some((snapshots, None)), |state| async move {
        let (mut snapshots, sent_versions) = state?;
        let differs =
            |snapshot: &std::sync::Arc<Snapshot>| snapshot.down.is_some() && snapshot.down != sent_versions;
        // An error means that the driver has ended, which happens only after the last progress.
        let down = snapshots.wait_for(differs).await.ok()?.down?;
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let progress = DownResponse { remaining: count(down.remaining), total: count(down.total) };
        Some((Ok(progress), (down.remaining > 0).then_some((snapshots, Some(down)))))
    })
}
