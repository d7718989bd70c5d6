//! Performs actions of many workspaces concurrently, and returns their results. The executor
//! decides nothing.

use std::{collections::HashMap, error::Error, future::pending, sync::Arc, time::Duration};

use podling_core::{
    decide::Action,
    id::WorkspaceId,
    workspace::{Epoch, Spec},
};
use tokio::{
    sync::Semaphore,
    task::{AbortHandle, Id, JoinSet},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    archiver::{ArchivedCopy, Archiver},
    backend::{Backend, Instance, ResizePlan, StartPlan},
    backup_store::StoreKey,
    progress::{ProgressReporter, TransferProgress},
    snapshot::AgentView,
};

/// Archives that are written at the same time. Further ones wait. Restores have the same number of
/// slots of their own, because callers wait for them. Each transfer uses a core, a disk and tens of
/// MiB of memory, here and at the agent.
const MAX_CONCURRENT_ARCHIVES: usize = 2;
/// Time limit for writing and proving an archive, and for a restore. A slower one is aborted and
/// retried, so that it does not hold its slot for ever.
const ARCHIVE_TIME_LIMIT: Duration = Duration::from_secs(6 * 60 * 60);
/// Expired archives that are removed at the same time. Further removals wait.
const MAX_CONCURRENT_EXPIRIES: usize = 4;
/// Time limit for one removal, so that a backup store that hangs does not hold a slot for ever.
const EXPIRE_TIME_LIMIT: Duration = Duration::from_secs(60);

/// Environment variable of debug builds that names a failpoint: `ACTION:before` or `ACTION:after`, such
/// as `archive:after`.
const FAILPOINT: &str = "PODLING_TEST_FAILPOINT";

/// Receives the progress of actions. The function must not block.
pub(crate) type ProgressSink = Arc<dyn Fn(WorkspaceId, Action, TransferProgress) + Send + Sync>;

/// Performs requests. The driver sends at most one per workspace at a time, which bounds their
/// number.
pub(crate) struct Executor<B> {
    backend: Arc<B>,
    archiver: Arc<dyn Archiver>,
    sink: ProgressSink,
    archiving: Arc<Semaphore>,
    restoring: Arc<Semaphore>,
    expiring: Arc<Semaphore>,
    running: JoinSet<Result<ActionOutput, String>>,
    actions: HashMap<Id, (WorkspaceId, Action)>,
    /// Handles of the running actions that can be cancelled.
    cancellable: HashMap<WorkspaceId, CancelHandle>,
}

/// Handle that cancels an action.
#[derive(Debug)]
enum CancelHandle {
    /// Aborts the task at any point.
    Abort(AbortHandle),
    /// Asks the backend to stop at a safe point.
    Graceful(CancellationToken),
}

/// A request to perform an action, with its inputs.
#[derive(Debug)]
pub(crate) enum ActionRequest {
    StartAgent(StartPlan),
    Resize(ResizePlan),
    StopProcesses(WorkspaceId, Epoch),
    /// Removes the storage. If `known` is set, also removes all archives of the workspace that are
    /// not in it.
    RemoveStorage {
        workspace: WorkspaceId,
        known: Option<Vec<StoreKey>>,
    },
    /// Writes and proves an archive. Then removes all archives of the workspace that are not in
    /// `known`.
    Archive {
        epoch: Epoch,
        generation: u64,
        spec: Arc<Spec>,
        agent: Arc<AgentView>,
        known: Vec<StoreKey>,
    },
    Restore {
        epoch: Epoch,
        key: StoreKey,
        spec: Arc<Spec>,
        agent: Arc<AgentView>,
    },
    ExpireArchive {
        workspace: WorkspaceId,
        generation: u64,
        key: StoreKey,
    },
}

#[derive(Debug)]
pub(crate) struct ActionResult {
    pub(crate) workspace: WorkspaceId,
    pub(crate) action: Action,
    pub(crate) result: Result<ActionOutput, String>,
}

/// The output of a successful action.
#[derive(Debug)]
pub(crate) enum ActionOutput {
    Started(Instance),
    Ended,
    /// The archive, and the storage generation that it holds.
    Archived(ArchivedCopy, u64),
}

impl ActionOutput {
    fn key(&self) -> Option<&StoreKey> {
        match self {
            Self::Archived(copy, _) => Some(&copy.key),
            Self::Started(_) | Self::Ended => None,
        }
    }
}

impl<B: Backend> Executor<B> {
    pub(crate) fn new(backend: Arc<B>, archiver: Arc<dyn Archiver>, sink: ProgressSink) -> Self {
        Self {
            backend,
            archiver,
            sink,
            archiving: Arc::new(Semaphore::new(MAX_CONCURRENT_ARCHIVES)),
            restoring: Arc::new(Semaphore::new(MAX_CONCURRENT_ARCHIVES)),
            expiring: Arc::new(Semaphore::new(MAX_CONCURRENT_EXPIRIES)),
            running: JoinSet::new(),
            actions: HashMap::new(),
            cancellable: HashMap::new(),
        }
    }

    /// Starts the action in the background. Its result is returned by [`Executor::next`].
    pub(crate) fn perform(&mut self, request: ActionRequest) {
        let (workspace, action) = request.subject();
        let (backend, archiver) = (self.backend.clone(), self.archiver.clone());
        let (sink, workspace_id) = (self.sink.clone(), workspace.clone());
        let reporter =
            Arc::new(ProgressReporter::new(move |progress| sink(workspace_id.clone(), action, progress)));
        let (permits, limit) = match request {
            ActionRequest::Archive { .. } => (Some(self.archiving.clone()), Some(ARCHIVE_TIME_LIMIT)),
            ActionRequest::Restore { .. } => (Some(self.restoring.clone()), Some(ARCHIVE_TIME_LIMIT)),
            ActionRequest::ExpireArchive { .. } => (Some(self.expiring.clone()), Some(EXPIRE_TIME_LIMIT)),
            // The backend limits these actions itself, or waits until they are cancelled.
            ActionRequest::StartAgent(_)
            | ActionRequest::Resize(_)
            | ActionRequest::StopProcesses(..)
            | ActionRequest::RemoveStorage { .. } => (None, None),
        };
        let (expiring, workspace_id) = (self.expiring.clone(), workspace.clone());
        let known = request.known();
        let cancellation = request.cancellation();
        let task = self.running.spawn(async move {
            // The semaphore is never closed. If it were, the action would run without a permit.
            let permit = match &permits {
                Some(permits) => permits.acquire().await.ok(),
                None => None,
            };
            let action_future = request.perform(&*backend, &*archiver, reporter);
            let result = match limit {
                None => action_future.await,
                Some(limit) => {
                    let late = |_| Err(format!("timed out after {} s", limit.as_secs()).into());
                    timeout(limit, action_future).await.unwrap_or_else(late)
                }
            };
            let result = result.map_err(|error| error.to_string());
            drop(permit);
            if let (Ok(output), Some(mut known)) = (&result, known) {
                known.extend(output.key().cloned());
                let _permit = expiring.acquire().await;
                sweep(&*archiver, &workspace_id, &known).await;
            }
            result
        });
        let handle = cancellation
            .map(CancelHandle::Graceful)
            .or_else(|| limit.map(|_| CancelHandle::Abort(task.clone())));
        if let Some(handle) = handle {
            self.cancellable.insert(workspace.clone(), handle);
        }
        self.actions.insert(task.id(), (workspace, action));
    }

    /// Cancels the workspace's archive, restore, expiry, start or resize. [`Executor::next`] still
    /// returns its result.
    pub(crate) fn cancel(&mut self, workspace: &WorkspaceId) {
        match self.cancellable.remove(workspace) {
            Some(CancelHandle::Abort(task)) => task.abort(),
            Some(CancelHandle::Graceful(cancellation)) => cancellation.cancel(),
            None => {}
        }
    }

    /// Waits for the next result. Never returns while no action runs. Cancel-safe.
    pub(crate) async fn next(&mut self) -> ActionResult {
        loop {
            let (id, result) = match self.running.join_next_with_id().await {
                None => pending().await,
                Some(Ok((id, result))) => (id, result),
                Some(Err(error)) if error.is_cancelled() => (error.id(), Err("cancelled".to_owned())),
                // A panic is treated as a failure, which the driver retries.
                Some(Err(error)) => (error.id(), Err(error.to_string())),
            };
            if let Some((workspace, action)) = self.actions.remove(&id) {
                self.cancellable.remove(&workspace);
                return ActionResult { workspace, action, result };
            }
        }
    }

    /// Returns whether no action is running.
    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_empty()
    }
}

impl ActionRequest {
    /// Returns the workspace and its action.
    fn subject(&self) -> (WorkspaceId, Action) {
        match self {
            Self::StartAgent(plan) => (plan.workspace.clone(), Action::StartAgent(plan.epoch)),
            Self::Resize(ResizePlan { workspace, epoch, resources, .. }) => {
                (workspace.clone(), Action::Resize { epoch: *epoch, resources: *resources })
            }
            Self::StopProcesses(id, _) => (id.clone(), Action::StopProcesses),
            Self::RemoveStorage { workspace, .. } => (workspace.clone(), Action::RemoveStorage),
            Self::Archive { epoch, spec, .. } => (spec.id.clone(), Action::Archive(*epoch)),
            Self::Restore { epoch, spec, .. } => (spec.id.clone(), Action::Restore(*epoch)),
            Self::ExpireArchive { workspace, generation, .. } => {
                (workspace.clone(), Action::ExpireArchive(*generation))
            }
        }
    }

    /// Returns the token that cancels a start or a resize. Other cancellable actions are cancelled
    /// by aborting their task.
    fn cancellation(&self) -> Option<CancellationToken> {
        match self {
            Self::StartAgent(plan) => Some(plan.cancellation.clone()),
            Self::Resize(resize) => Some(resize.cancellation.clone()),
            _ => None,
        }
    }

    /// Returns the recorded archives of the workspace, if all others are to be removed after the
    /// action.
    fn known(&self) -> Option<Vec<StoreKey>> {
        match self {
            Self::RemoveStorage { known, .. } => known.clone(),
            Self::Archive { known, .. } => Some(known.clone()),
            Self::StartAgent(_)
            | Self::Resize(_)
            | Self::StopProcesses(..)
            | Self::Restore { .. }
            | Self::ExpireArchive { .. } => None,
        }
    }

    async fn perform(
        self,
        backend: &impl Backend,
        archiver: &dyn Archiver,
        reporter: Arc<ProgressReporter>,
    ) -> Result<ActionOutput, Box<dyn Error + Send + Sync>> {
        match self {
            Self::StartAgent(plan) => return Ok(ActionOutput::Started(backend.ensure(plan).await?)),
            Self::Archive { generation, spec, agent, .. } => {
                let copy = archiver.archive(&spec, generation, &agent, reporter).await?;
                return Ok(ActionOutput::Archived(copy, generation));
            }
            Self::Resize(resize) => backend.resize(resize).await?,
            Self::StopProcesses(id, last) => backend.stop(id, last).await?,
            Self::RemoveStorage { workspace, .. } => backend.remove(workspace).await?,
            Self::Restore { key, spec, agent, .. } => {
                archiver.restore(&spec, &key, &agent, reporter).await?;
            }
            Self::ExpireArchive { key, .. } => archiver.expire(&key).await?,
        }
        Ok(ActionOutput::Ended)
    }
}

/// Removes the workspace's archives that are not in `known`. An error is only logged, because the
/// next archive or removal tries again.
async fn sweep(archiver: &dyn Archiver, workspace: &WorkspaceId, known: &[StoreKey]) {
    let error = match timeout(EXPIRE_TIME_LIMIT, archiver.sweep(workspace, known)).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("timed out after {} s", EXPIRE_TIME_LIMIT.as_secs()),
    };
    tracing::warn!(%workspace, error, "failed to remove unrecorded archives");
}

/// Kills the process, as a crash does, if the failpoint for tests is set to this action and moment:
/// "before" the action starts, or "after" its result arrived and before that is recorded. Does nothing
/// in release builds.
pub(crate) fn failpoint(action: Action, moment: &str) {
    let name = match action {
        Action::StartAgent(_) => "start-agent",
        Action::Prepare { .. } => "prepare",
        Action::Commit(_) => "commit",
        Action::Cancel(_) => "cancel",
        Action::Resize { .. } => "resize",
        Action::StopProcesses => "stop-processes",
        Action::Archive(_) => "archive",
        Action::Restore(_) => "restore",
        Action::RemoveStorage => "remove-storage",
        Action::ExpireArchive(_) => "expire-archive",
        Action::RemoveRecord => "remove-record",
    };
    if cfg!(debug_assertions) && std::env::var(FAILPOINT).is_ok_and(|at| at == format!("{name}:{moment}")) {
        tracing::error!(?action, moment, "failpoint reached; killing the process");
        // SIGKILL prevents unwinding and cleanup.
        let _dead = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}
