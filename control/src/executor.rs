//! The executor: performs what was decided, many workspaces at once, and says how it went. It decides nothing.

use std::{collections::HashMap, future::pending, sync::Arc};

use podling_core::{
    decide::Action,
    id::WorkspaceId,
    observed::{Achieved, Failure},
};
use tokio::{
    sync::Semaphore,
    task::{Id, JoinSet},
};

use crate::backend::{Backend, BackendError, Instance, Plan};

/// Actions performed at once; more wait their turn. Most of an action is waiting (for processes to end), but each also looks
/// through /proc or forks.
const AT_ONCE: usize = 32;

/// Performs orders. At most one order per workspace is given at a time, so that there are never more than there may be workspaces.
#[derive(Debug)]
pub(crate) struct Executor<B> {
    backend: Arc<B>,
    permits: Arc<Semaphore>,
    running: JoinSet<Result<Done, BackendError>>,
    orders: HashMap<Id, (WorkspaceId, Action)>,
}

/// What to do at the backend.
#[derive(Debug)]
pub(crate) enum Order {
    Start(Plan),
    Stop(WorkspaceId),
    Remove(WorkspaceId),
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
}

impl<B: Backend> Executor<B> {
    pub(crate) fn new(backend: Arc<B>) -> Self {
        let permits = Arc::new(Semaphore::new(AT_ONCE));
        Self { backend, permits, running: JoinSet::new(), orders: HashMap::new() }
    }

    /// Performs it in the background.
    pub(crate) fn perform(&mut self, order: Order) {
        let (backend, permits) = (self.backend.clone(), self.permits.clone());
        let key = match &order {
            Order::Start(plan) => (plan.workspace.clone(), Action::Start(plan.epoch)),
            Order::Stop(id) => (id.clone(), Action::Stop),
            Order::Remove(id) => (id.clone(), Action::Remove),
        };
        let task = self.running.spawn(async move {
            // Never closed; and if it were, unbounded is better than never.
            let _permit = permits.acquire().await;
            match order {
                Order::Start(plan) => backend.ensure(plan).await.map(Done::Started),
                Order::Stop(id) => backend.stop(id).await.map(|()| Done::Ended),
                Order::Remove(id) => backend.remove(id).await.map(|()| Done::Ended),
            }
        });
        self.orders.insert(task.id(), key);
    }

    /// The next outcome; waits for ever while nothing is being done. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Outcome {
        loop {
            let (id, result) = match self.running.join_next_with_id().await {
                None => pending().await,
                Some(Ok((id, result))) => (id, result.map_err(|error| error.to_string())),
                // A panic is a failure like another: the driver tries again.
                Some(Err(error)) => (error.id(), Err(error.to_string())),
            };
            if let Some((workspace, action)) = self.orders.remove(&id) {
                return Outcome { workspace, action, result };
            }
        }
    }

    /// Whether nothing is being done.
    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_empty()
    }
}
