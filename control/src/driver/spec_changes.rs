//! Queues the changes of stored specs, and handles their results. At most one change of a workspace is
//! in flight, so that changes are made in the order of their requests. `requests` checks them first.

use std::{
    collections::{BTreeMap, VecDeque},
    future::pending,
    sync::Arc,
    time::Duration,
};

use podling_core::{id::WorkspaceId, spec_change::SpecChange};
use tokio::{task::JoinSet, time::Instant};

use super::{Driver, DriverError, PendingReply, WorkspaceEntry};
use crate::{
    backend::Backend,
    store::{Store, StoreError, StoredSpec, WorkspaceRecord},
};

/// Most changes in flight. Workspaces with further changes are served round-robin.
const MAX_IN_FLIGHT: usize = 16;

/// Most changes that wait for one workspace. Further requests are rejected.
const MAX_WAITING: usize = 32;

/// Longest time that a request waits until its change starts. The store may answer slowly.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Pause before the driver repeats a failed change of its own.
const RETRY_PAUSE: Duration = Duration::from_secs(10);

/// A requested change of the stored spec of a workspace.
#[derive(Debug)]
struct SpecChangeRequest {
    change: SpecChange,
    /// The callers that wait. Empty if the driver itself requests the change.
    replies: Vec<PendingReply>,
    requested_at: Instant,
}

/// A change of a spec that the store has finished.
#[derive(Debug)]
pub(crate) struct FinishedSpecChange {
    id: WorkspaceId,
    request: SpecChangeRequest,
    result: Result<StoredSpec, StoreError>,
}

/// Queues changes of specs, and gives them to the store.
#[derive(Debug)]
pub(crate) struct SpecChangeQueue {
    store: Arc<dyn Store>,
    /// The changes that wait, oldest first. A workspace with a change in flight has an entry too.
    waiting: BTreeMap<WorkspaceId, VecDeque<SpecChangeRequest>>,
    /// The workspaces with a waiting change and none in flight. The first one is served next.
    ready: VecDeque<WorkspaceId>,
    in_flight: JoinSet<FinishedSpecChange>,
}

impl SpecChangeQueue {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self { store, waiting: BTreeMap::new(), ready: VecDeque::new(), in_flight: JoinSet::new() }
    }

    /// Adds a change, or returns it if too many wait for the workspace. The changes of the driver are
    /// not counted, because it requests one at a time.
    fn enqueue(&mut self, id: &WorkspaceId, request: SpecChangeRequest) -> Option<SpecChangeRequest> {
        let queue = self.waiting.entry(id.clone()).or_insert_with(|| {
            self.ready.push_back(id.clone());
            VecDeque::new()
        });
        let is_full = queue.len() >= MAX_WAITING && !request.replies.is_empty();
        match queue.back_mut() {
            // An equal change that has not begun serves both callers.
            Some(last) if last.change == request.change => last.replies.extend(request.replies),
            _ if is_full => return Some(request),
            _ => queue.push_back(request),
        }
        None
    }

    /// Removes the next change to start, if fewer than [`MAX_IN_FLIGHT`] are in flight. The caller
    /// starts it, or calls [`Self::make_ready`].
    fn next_request(&mut self) -> Option<(WorkspaceId, SpecChangeRequest)> {
        while self.in_flight.len() < MAX_IN_FLIGHT {
            let id = self.ready.pop_front()?;
            match self.waiting.get_mut(&id).and_then(VecDeque::pop_front) {
                Some(request) => return Some((id, request)),
                // All its requests have expired.
                None => drop(self.waiting.remove(&id)),
            }
        }
        None
    }

    /// Removes the callers' requests that have waited longer than [`START_TIMEOUT`].
    fn take_expired(&mut self) -> Vec<(WorkspaceId, SpecChangeRequest)> {
        let is_expired = |request: &mut SpecChangeRequest| {
            !request.replies.is_empty() && request.requested_at.elapsed() > START_TIMEOUT
        };
        let take = |(id, queue): (&WorkspaceId, &mut VecDeque<SpecChangeRequest>)| {
            let expired = std::iter::from_fn(|| queue.pop_front_if(is_expired));
            expired.map(|request| (id.clone(), request)).collect::<Vec<_>>()
        };
        self.waiting.iter_mut().flat_map(take).collect()
    }

    fn start(&mut self, id: WorkspaceId, known: Arc<WorkspaceRecord>, request: SpecChangeRequest) {
        let store = self.store.clone();
        self.in_flight.spawn(async move {
            let result = store.change_spec(&known, &request.change).await;
            FinishedSpecChange { id, request, result }
        });
    }

    /// Makes the workspace ready for its next change, if another one waits.
    fn make_ready(&mut self, id: &WorkspaceId) {
        match self.waiting.get(id) {
            Some(queue) if !queue.is_empty() => self.ready.push_back(id.clone()),
            _ => drop(self.waiting.remove(id)),
        }
    }

    /// Makes the workspace ready with this change, before its other changes.
    fn requeue_first(&mut self, id: &WorkspaceId, request: SpecChangeRequest) {
        self.waiting.entry(id.clone()).or_default().push_front(request);
        self.ready.push_back(id.clone());
    }

    /// Waits until a change is finished. The caller makes its workspace ready for the next one. Never
    /// returns while none is in flight. Cancel-safe.
    pub(crate) async fn next(&mut self) -> FinishedSpecChange {
        let Some(finished) = self.in_flight.join_next().await else { return pending().await };
        finished.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    /// Returns whether no change waits or is in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.in_flight.is_empty()
    }
}

impl<B: Backend> Driver<B> {
    /// Requests a change of the stored spec. The caller is answered once the change is stored, and the
    /// status that follows from it is durable.
    pub(super) fn request_spec_change(&mut self, id: &WorkspaceId, change: SpecChange, reply: PendingReply) {
        let Some(entry) = self.entries.get_mut(id).filter(|entry| entry.durable_record().is_some()) else {
            // No caller knows a workspace before it is durable.
            return reply.reject(DriverError::NoWorkspace(id.clone()));
        };
        tracing::debug!(workspace = %id, ?change, "spec change requested");
        entry.spec_change_requested(&change);
        if let Some(refused) = self.spec_changes.enqueue(id, SpecChangeRequest::new(change, vec![reply])) {
            let refusal = DriverError::TooManyChanges { id: id.clone(), limit: MAX_WAITING };
            entry.answer_spec_change(&refused.change, refused.replies, Some(&refusal));
        }
    }

    /// Requests the change of the spec that the driver itself needs, if one is due. Does nothing while
    /// the control plane shuts down.
    pub(super) fn request_own_spec_change(&mut self, id: &WorkspaceId) {
        if !self.is_stopping()
            && let Some(change) = self.entries.get_mut(id).and_then(WorkspaceEntry::begin_own_spec_change)
        {
            let refused = self.spec_changes.enqueue(id, SpecChangeRequest::new(change, Vec::new()));
            debug_assert!(refused.is_none(), "changes of the driver are not counted");
        }
    }

    /// Starts the changes of specs that may start, and rejects the requests that have waited too long.
    pub(super) fn start_spec_changes(&mut self) {
        for (id, SpecChangeRequest { change, replies, .. }) in self.spec_changes.take_expired() {
            let problem = format!("the change waited {START_TIMEOUT:?} for earlier ones and was not made");
            let refusal = DriverError::NotSaved { problem, disk_full: false };
            match self.entries.get_mut(&id) {
                Some(entry) => entry.answer_spec_change(&change, replies, Some(&refusal)),
                None => replies.into_iter().for_each(|reply| reply.reject(refusal.clone())),
            }
        }
        while let Some((id, request)) = self.spec_changes.next_request() {
            match self.entries.get(&id).and_then(WorkspaceEntry::durable_record) {
                Some(known) => self.spec_changes.start(id, known, request),
                None => {
                    self.spec_changes.make_ready(&id);
                    request.reject(&id);
                }
            }
        }
    }

    /// Observes the result of a change of the stored spec.
    pub(super) fn finish_spec_change(&mut self, finished: FinishedSpecChange) {
        let FinishedSpecChange { id, request, result } = finished;
        let Some(entry) = self.entries.get_mut(&id) else {
            self.spec_changes.make_ready(&id);
            return request.reject(&id);
        };
        let SpecChangeRequest { change, replies, .. } = request;
        if replies.is_empty() {
            let pause = if result.is_ok() { Duration::ZERO } else { RETRY_PAUSE };
            entry.end_own_spec_change(Instant::now() + pause);
        }
        let refusal = match result {
            Ok(stored) => {
                entry.observe_changed_spec(&stored);
                if let Some(change) = entry.repeated_wake(&change) {
                    self.spec_changes.requeue_first(&id, SpecChangeRequest::new(change, replies));
                    return self.advance(&id);
                }
                entry.refusal(&change, &stored.desired)
            }
            Err(error) => {
                tracing::warn!(
                    workspace = %id, ?change, error = &error as &dyn std::error::Error,
                    "failed to change the spec"
                );
                entry.spec_change_failed();
                Some(DriverError::not_saved(&error))
            }
        };
        entry.answer_spec_change(&change, replies, refusal.as_ref());
        self.spec_changes.make_ready(&id);
        self.advance(&id);
    }
}

impl SpecChangeRequest {
    fn new(change: SpecChange, replies: Vec<PendingReply>) -> Self {
        Self { change, replies, requested_at: Instant::now() }
    }

    /// Rejects the request, because there is no workspace of this id any more.
    fn reject(self, id: &WorkspaceId) {
        self.replies.into_iter().for_each(|reply| reply.reject(DriverError::NoWorkspace(id.clone())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::RedbStore;

    fn request(change: SpecChange) -> SpecChangeRequest {
        let (reply, _) = tokio::sync::oneshot::channel();
        SpecChangeRequest::new(change, vec![PendingReply::View(reply)])
    }

    #[test]
    fn workspaces_are_served_round_robin_with_changes_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let store = RedbStore::open(&dir.path().join("store.redb")).unwrap();
        let mut queue = SpecChangeQueue::new(Arc::new(store));
        let [busy, other] = [1, 2].map(WorkspaceId::from_bits);
        let wake = SpecChange::Wake { acted_on: None };
        let changes = || [wake.clone(), SpecChange::Sleep].into_iter().cycle();
        for change in changes().take(MAX_WAITING) {
            assert!(queue.enqueue(&busy, request(change)).is_none(), "it may wait");
        }
        assert!(queue.enqueue(&busy, request(SpecChange::Sleep)).is_none(), "it joins an equal change");
        assert!(queue.enqueue(&busy, request(wake.clone())).is_some(), "the queue is bounded");
        assert!(queue.enqueue(&other, request(SpecChange::Restore)).is_none(), "it may wait");
        let mut next = || queue.next_request().map(|(id, request)| (id, request.change));
        assert_eq!(next(), Some((busy.clone(), wake.clone())));
        assert_eq!(next(), Some((other.clone(), SpecChange::Restore)));
        assert_eq!(next(), None, "one change of a workspace is in flight");
        queue.make_ready(&other);
        queue.make_ready(&busy);
        let order = std::iter::from_fn(|| {
            let (id, request) = queue.next_request()?;
            queue.make_ready(&id);
            Some(request.change)
        });
        assert!(order.eq(changes().take(MAX_WAITING).skip(1)), "changes are made in their order");
        assert!(queue.is_idle());
    }

    #[tokio::test(start_paused = true)]
    async fn request_whose_change_never_starts_expires() {
        let dir = tempfile::tempdir().unwrap();
        let store = RedbStore::open(&dir.path().join("store.redb")).unwrap();
        let (mut queue, id) = (SpecChangeQueue::new(Arc::new(store)), WorkspaceId::from_bits(1));
        queue.enqueue(&id, request(SpecChange::Sleep));
        tokio::time::advance(START_TIMEOUT / 2).await;
        queue.enqueue(&id, request(SpecChange::Restore));
        let expired = |queue: &mut SpecChangeQueue| {
            queue.take_expired().into_iter().map(|(_, request)| request.change).collect::<Vec<_>>()
        };
        assert_eq!(expired(&mut queue), []);
        tokio::time::advance(START_TIMEOUT * 2 / 3).await;
        assert_eq!(expired(&mut queue), [SpecChange::Sleep]);
        tokio::time::advance(START_TIMEOUT).await;
        assert_eq!(expired(&mut queue), [SpecChange::Restore]);
        assert!(queue.next_request().is_none() && queue.is_idle(), "nothing is left to do");
        queue.enqueue(&id, request(SpecChange::Sleep));
        assert!(queue.next_request().is_some(), "a later request is served");
    }
}
