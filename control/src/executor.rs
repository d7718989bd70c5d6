//! The executor: performs what was decided, many workspaces at once, and says how it went. It decides nothing.

use std::{collections::HashMap, fmt, future::pending, sync::Arc, time::Duration};

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

/// Archives batch_committed at once, and apart from them read at once (somebody waits for those); more wait their turn. Each takes a core's
/// time, a disk's, and some 40 MiB here and at its agent.
const MAX_CONCURRENT_ARCHIVES: usize = 2;
/// For one archive to be batch_committed and proven, or read back: one that trickles gives its turn to others and is tried again.
const ARCHIVE_TIME_LIMIT: Duration = Duration::from_secs(6 * 60 * 60);
/// Archives removed at once, and how long one may take: a store that hangs holds up nothing else.
const MAX_CONCURRENT_EXPIRIES: usize = 4;
const EXPIRE_TIME_LIMIT: Duration = Duration::from_secs(60);

/// Where it is told how far an action is. Must not block.
#[derive(Clone)]
pub(crate) struct ProgressSink(Arc<dyn Fn(WorkspaceId, Action, TransferProgress) + Send + Sync>);

/// Performs orders. At most one order per workspace is given at a time, so that there are never more than there may be workspaces.
#[derive(Debug)]
pub(crate) struct Executor<B> {
    backend: Arc<B>,
    archiver: Arc<dyn Archiver>,
    told: ProgressSink,
    archiving: Arc<Semaphore>,
    restoring: Arc<Semaphore>,
    expiring: Arc<Semaphore>,
    running: JoinSet<Result<ActionOutput, String>>,
    orders: HashMap<Id, (WorkspaceId, Action)>,
    /// Of what may be broken off.
    cancellable: HashMap<WorkspaceId, CancelHandle>,
}

/// How something is broken off.
#[derive(Debug)]
enum CancelHandle {
    /// Wherever it is.
    Abort(AbortHandle),
    /// Where its doer sees fit.
    GiveUp(CancellationToken),
}

/// What to do.
#[derive(Debug)]
pub(crate) enum ActionRequest {
    Start(StartPlan),
    Resize(ResizePlan),
    Stop(WorkspaceId, Epoch),
    /// Of one that goes for good, also archives that nobody knows of (all but these).
    Remove {
        workspace: WorkspaceId,
        known: Option<Vec<StoreKey>>,
    },
    /// With the archives of it that are known.
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
    Expire {
        workspace: WorkspaceId,
        generation: u64,
        key: StoreKey,
    },
}

/// How an action went.
#[derive(Debug)]
pub(crate) struct ActionResult {
    pub(crate) workspace: WorkspaceId,
    pub(crate) action: Action,
    pub(crate) result: Result<ActionOutput, String>,
}

/// What an action achieved.
#[derive(Debug)]
pub(crate) enum ActionOutput {
    Started(Instance),
    Ended,
    /// It is archived: what it holds, and of which storage generation.
    Kept(ArchivedCopy, u64),
}

impl ActionOutput {
    fn key(&self) -> Option<&StoreKey> {
        match self {
            Self::Kept(kept, _) => Some(&kept.key),
            Self::Started(_) | Self::Ended => None,
        }
    }
}

impl ProgressSink {
    pub(crate) fn new(told: impl Fn(WorkspaceId, Action, TransferProgress) + Send + Sync + 'static) -> Self {
        Self(Arc::new(told))
    }
}

impl fmt::Debug for ProgressSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProgressSink").finish_non_exhaustive()
    }
}

impl<B: Backend> Executor<B> {
    pub(crate) fn new(backend: Arc<B>, archiver: Arc<dyn Archiver>, told: ProgressSink) -> Self {
        Self {
            backend,
            archiver,
            told,
            archiving: Arc::new(Semaphore::new(MAX_CONCURRENT_ARCHIVES)),
            restoring: Arc::new(Semaphore::new(MAX_CONCURRENT_ARCHIVES)),
            expiring: Arc::new(Semaphore::new(MAX_CONCURRENT_EXPIRIES)),
            running: JoinSet::new(),
            orders: HashMap::new(),
            cancellable: HashMap::new(),
        }
    }

    /// Performs it in the background.
    pub(crate) fn perform(&mut self, order: ActionRequest) {
        let (workspace, action) = order.subject();
        let (backend, archiver) = (self.backend.clone(), self.archiver.clone());
        let (told, whose) = (self.told.clone(), workspace.clone());
        let reporter =
            Arc::new(ProgressReporter::new(move |progress| told.0(whose.clone(), action, progress)));
        let (permits, limit) = match order {
            ActionRequest::Archive { .. } => (Some(self.archiving.clone()), Some(ARCHIVE_TIME_LIMIT)),
            ActionRequest::Restore { .. } => (Some(self.restoring.clone()), Some(ARCHIVE_TIME_LIMIT)),
            ActionRequest::Expire { .. } => (Some(self.expiring.clone()), Some(EXPIRE_TIME_LIMIT)),
            // The backend sees to it that each comes to its end, and how many at once.
            ActionRequest::Start(_)
            | ActionRequest::Resize(_)
            | ActionRequest::Stop(..)
            | ActionRequest::Remove { .. } => (None, None),
        };
        let (expiring, whose) = (self.expiring.clone(), workspace.clone());
        let known = order.known();
        let cancellation = order.cancellation();
        let task = self.running.spawn(async move {
            // Never closed; and if it were, unbounded is better than never.
            let permit = match &permits {
                Some(permits) => permits.acquire().await.ok(),
                None => None,
            };
            let performed = order.perform(&*backend, &*archiver, reporter);
            let result = match limit {
                None => performed.await,
                Some(limit) => {
                    let late = |_| Err(format!("it was not done within {} s", limit.as_secs()));
                    timeout(limit, performed).await.unwrap_or_else(late)
                }
            };
            drop(permit);
            if let (Ok(done), Some(mut known)) = (&result, known) {
                known.extend(done.key().cloned());
                let _permit = expiring.acquire().await;
                sweep(&*archiver, &whose, &known).await;
            }
            result
        });
        let breaks = cancellation
            .map(CancelHandle::GiveUp)
            .or_else(|| limit.map(|_| CancelHandle::Abort(task.clone())));
        if let Some(breaks) = breaks {
            self.cancellable.insert(workspace.clone(), breaks);
        }
        self.orders.insert(task.id(), (workspace, action));
    }

    /// Breaks off what the archiver does for a workspace, or a start or a resize of it. Its outcome comes as ever.
    pub(crate) fn cancel(&mut self, workspace: &WorkspaceId) {
        match self.cancellable.remove(workspace) {
            Some(CancelHandle::Abort(task)) => task.abort(),
            Some(CancelHandle::GiveUp(cancellation)) => cancellation.cancel(),
            None => {}
        }
    }

    /// The next outcome; waits for ever while nothing is being done. Cancel-safe.
    pub(crate) async fn next(&mut self) -> ActionResult {
        loop {
            let (id, result) = match self.running.join_next_with_id().await {
                None => pending().await,
                Some(Ok((id, result))) => (id, result),
                Some(Err(error)) if error.is_cancelled() => (error.id(), Err("it was broken off".to_owned())),
                // A panic is a failure like another: the driver tries again.
                Some(Err(error)) => (error.id(), Err(error.to_string())),
            };
            if let Some((workspace, action)) = self.orders.remove(&id) {
                self.cancellable.remove(&workspace);
                return ActionResult { workspace, action, result };
            }
        }
    }

    /// Whether nothing is being done.
    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_empty()
    }
}

impl ActionRequest {
    /// Whose it is, and which action.
    fn subject(&self) -> (WorkspaceId, Action) {
        match self {
            Self::Start(plan) => (plan.workspace.clone(), Action::Start(plan.epoch)),
            Self::Resize(ResizePlan { workspace, epoch, resources, .. }) => {
                (workspace.clone(), Action::Resize { epoch: *epoch, resources: *resources })
            }
            Self::Stop(id, _) => (id.clone(), Action::Stop),
            Self::Remove { workspace, .. } => (workspace.clone(), Action::Remove),
            Self::Archive { epoch, spec, .. } => (spec.id.clone(), Action::Archive(*epoch)),
            Self::Restore { epoch, spec, .. } => (spec.id.clone(), Action::Restore(*epoch)),
            Self::Expire { workspace, generation, .. } => (workspace.clone(), Action::Expire(*generation)),
        }
    }

    /// What ends it where it waits.
    fn cancellation(&self) -> Option<CancellationToken> {
        match self {
            Self::Start(plan) => Some(plan.cancellation.clone()),
            Self::Resize(resize) => Some(resize.cancellation.clone()),
            _ => None,
        }
    }

    /// The archives of its workspace that are known, if what else there is goes with it.
    fn known(&self) -> Option<Vec<StoreKey>> {
        match self {
            Self::Remove { known, .. } => known.clone(),
            Self::Archive { known, .. } => Some(known.clone()),
            Self::Start(_)
            | Self::Resize(_)
            | Self::Stop(..)
            | Self::Restore { .. }
            | Self::Expire { .. } => None,
        }
    }

    async fn perform(
        self,
        backend: &impl Backend,
        archiver: &dyn Archiver,
        reporter: Arc<ProgressReporter>,
    ) -> Result<ActionOutput, String> {
        let ended = |()| ActionOutput::Ended;
        match self {
            Self::Start(plan) => {
                backend.ensure(plan).await.map(ActionOutput::Started).map_err(|e| e.to_string())
            }
            Self::Resize(resize) => backend.resize(resize).await.map(ended).map_err(|e| e.to_string()),
            Self::Stop(id, last) => backend.stop(id, last).await.map(ended).map_err(|e| e.to_string()),
            Self::Remove { workspace, .. } => {
                backend.remove(workspace).await.map(ended).map_err(|e| e.to_string())
            }
            Self::Archive { generation, spec, agent, .. } => {
                let kept = archiver.archive(&spec, generation, &agent, reporter).await;
                kept.map(|kept| ActionOutput::Kept(kept, generation)).map_err(|e| e.to_string())
            }
            Self::Restore { key, spec, agent, .. } => {
                archiver.restore(&spec, &key, &agent, reporter).await.map(ended).map_err(|e| e.to_string())
            }
            Self::Expire { key, .. } => archiver.expire(&key).await.map(ended).map_err(|e| e.to_string()),
        }
    }
}

/// Nobody waits for it, and nothing depends on it: what is drain_reply now goes with the next archive.
async fn sweep(archiver: &dyn Archiver, workspace: &WorkspaceId, known: &[StoreKey]) {
    let error = match timeout(EXPIRE_TIME_LIMIT, archiver.sweep(workspace, known)).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("it was not done within {} s", EXPIRE_TIME_LIMIT.as_secs()),
    };
    tracing::warn!(%workspace, error, "archives that nobody knows of may be drain_reply");
}
