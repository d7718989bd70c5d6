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
    backend::{Backend, Instance, ResizePlan, StartPlan},
    backup_store::StoreKey,
    keeper::{Keeper, Kept},
    progress::{Progress, Teller},
    snapshot::AgentView,
};

/// Archives written at once, and apart from them read at once (somebody waits for those); more wait their turn. Each takes a core's
/// time, a disk's, and some 40 MiB here and at its agent.
const KEPT_AT_ONCE: usize = 2;
/// For one archive to be written and proven, or read back: one that trickles gives its turn to others and is tried again.
const KEEP_LIMIT: Duration = Duration::from_secs(6 * 60 * 60);
/// Archives removed at once, and how long one may take: a store that hangs holds up nothing else.
const EXPIRED_AT_ONCE: usize = 4;
const EXPIRE_LIMIT: Duration = Duration::from_secs(60);

/// Where it is told how far an action is. Must not block.
#[derive(Clone)]
pub(crate) struct Told(Arc<dyn Fn(WorkspaceId, Action, Progress) + Send + Sync>);

/// Performs orders. At most one order per workspace is given at a time, so that there are never more than there may be workspaces.
#[derive(Debug)]
pub(crate) struct Executor<B> {
    backend: Arc<B>,
    keeper: Arc<dyn Keeper>,
    told: Told,
    archiving: Arc<Semaphore>,
    restoring: Arc<Semaphore>,
    expiring: Arc<Semaphore>,
    running: JoinSet<Result<Done, String>>,
    orders: HashMap<Id, (WorkspaceId, Action)>,
    /// Of what may be broken off.
    breakable: HashMap<WorkspaceId, Break>,
}

/// How something is broken off.
#[derive(Debug)]
enum Break {
    /// Wherever it is.
    Abort(AbortHandle),
    /// Where its doer sees fit.
    GiveUp(CancellationToken),
}

/// What to do.
#[derive(Debug)]
pub(crate) enum Order {
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
pub(crate) struct Outcome {
    pub(crate) workspace: WorkspaceId,
    pub(crate) action: Action,
    pub(crate) result: Result<Done, String>,
}

/// What an action achieved.
#[derive(Debug)]
pub(crate) enum Done {
    Started(Instance),
    Ended,
    /// It is archived: what it holds, and of which storage generation.
    Kept(Kept, u64),
}

impl Done {
    fn key(&self) -> Option<&StoreKey> {
        match self {
            Self::Kept(kept, _) => Some(&kept.key),
            Self::Started(_) | Self::Ended => None,
        }
    }
}

impl Told {
    pub(crate) fn new(told: impl Fn(WorkspaceId, Action, Progress) + Send + Sync + 'static) -> Self {
        Self(Arc::new(told))
    }
}

impl fmt::Debug for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Told").finish_non_exhaustive()
    }
}

impl<B: Backend> Executor<B> {
    pub(crate) fn new(backend: Arc<B>, keeper: Arc<dyn Keeper>, told: Told) -> Self {
        Self {
            backend,
            keeper,
            told,
            archiving: Arc::new(Semaphore::new(KEPT_AT_ONCE)),
            restoring: Arc::new(Semaphore::new(KEPT_AT_ONCE)),
            expiring: Arc::new(Semaphore::new(EXPIRED_AT_ONCE)),
            running: JoinSet::new(),
            orders: HashMap::new(),
            breakable: HashMap::new(),
        }
    }

    /// Performs it in the background.
    pub(crate) fn perform(&mut self, order: Order) {
        let (workspace, action) = order.names();
        let (backend, keeper) = (self.backend.clone(), self.keeper.clone());
        let (told, whose) = (self.told.clone(), workspace.clone());
        let teller = Arc::new(Teller::new(move |progress| told.0(whose.clone(), action, progress)));
        let (permits, limit) = match order {
            Order::Archive { .. } => (Some(self.archiving.clone()), Some(KEEP_LIMIT)),
            Order::Restore { .. } => (Some(self.restoring.clone()), Some(KEEP_LIMIT)),
            Order::Expire { .. } => (Some(self.expiring.clone()), Some(EXPIRE_LIMIT)),
            // The backend sees to it that each comes to its end, and how many at once.
            Order::Start(_) | Order::Resize(_) | Order::Stop(..) | Order::Remove { .. } => (None, None),
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
            let performed = order.perform(&*backend, &*keeper, teller);
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
                sweep(&*keeper, &whose, &known).await;
            }
            result
        });
        let breaks = cancellation.map(Break::GiveUp).or_else(|| limit.map(|_| Break::Abort(task.clone())));
        if let Some(breaks) = breaks {
            self.breakable.insert(workspace.clone(), breaks);
        }
        self.orders.insert(task.id(), (workspace, action));
    }

    /// Breaks off what the keeper does for a workspace, or a start or a resize of it. Its outcome comes as ever.
    pub(crate) fn break_off(&mut self, workspace: &WorkspaceId) {
        match self.breakable.remove(workspace) {
            Some(Break::Abort(task)) => task.abort(),
            Some(Break::GiveUp(cancellation)) => cancellation.cancel(),
            None => {}
        }
    }

    /// The next outcome; waits for ever while nothing is being done. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Outcome {
        loop {
            let (id, result) = match self.running.join_next_with_id().await {
                None => pending().await,
                Some(Ok((id, result))) => (id, result),
                Some(Err(error)) if error.is_cancelled() => (error.id(), Err("it was broken off".to_owned())),
                // A panic is a failure like another: the driver tries again.
                Some(Err(error)) => (error.id(), Err(error.to_string())),
            };
            if let Some((workspace, action)) = self.orders.remove(&id) {
                self.breakable.remove(&workspace);
                return Outcome { workspace, action, result };
            }
        }
    }

    /// Whether nothing is being done.
    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_empty()
    }
}

impl Order {
    /// Whose it is, and which action.
    fn names(&self) -> (WorkspaceId, Action) {
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
        keeper: &dyn Keeper,
        teller: Arc<Teller>,
    ) -> Result<Done, String> {
        let ended = |()| Done::Ended;
        match self {
            Self::Start(plan) => backend.ensure(plan).await.map(Done::Started).map_err(|e| e.to_string()),
            Self::Resize(resize) => backend.resize(resize).await.map(ended).map_err(|e| e.to_string()),
            Self::Stop(id, last) => backend.stop(id, last).await.map(ended).map_err(|e| e.to_string()),
            Self::Remove { workspace, .. } => {
                backend.remove(workspace).await.map(ended).map_err(|e| e.to_string())
            }
            Self::Archive { generation, spec, agent, .. } => {
                let kept = keeper.archive(&spec, generation, &agent, teller).await;
                kept.map(|kept| Done::Kept(kept, generation)).map_err(|e| e.to_string())
            }
            Self::Restore { key, spec, agent, .. } => {
                keeper.restore(&spec, &key, &agent, teller).await.map(ended).map_err(|e| e.to_string())
            }
            Self::Expire { key, .. } => keeper.expire(&key).await.map(ended).map_err(|e| e.to_string()),
        }
    }
}

/// Nobody waits for it, and nothing depends on it: what is left now goes with the next archive.
async fn sweep(keeper: &dyn Keeper, workspace: &WorkspaceId, known: &[StoreKey]) {
    let error = match timeout(EXPIRE_LIMIT, keeper.sweep(workspace, known)).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("it was not done within {} s", EXPIRE_LIMIT.as_secs()),
    };
    tracing::warn!(%workspace, error, "archives that nobody knows of may be left");
}
