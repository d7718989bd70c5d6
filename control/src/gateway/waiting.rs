//! Finds the agent of a workspace, and holds requests that wake the workspace until it is awake, in
//! a first-in first-out queue for each workspace. Independent of the contents of requests.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use podling_core::{id::WorkspaceId, reason::StateReason, workspace::State};
use podling_proto::error::{Reason, WireError};
use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};

use super::{shutting_down, unreachable_agent};
use crate::{
    principal::Principal,
    reasons,
    snapshot::{AgentView, SnapshotReceiver, WorkspaceView},
};

/// Longest time for which a request is held. Then the request fails with WAKE_TIMEOUT. Longer than
/// a cold start takes, and well below the minute after which proxies give up.
const HOLD_TIMEOUT: Duration = Duration::from_secs(30);
/// Delay after which a rejected client may retry, and interval at which a held request repeats its
/// wake request.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Calls held for one workspace. Enough for the tabs of a browser and some tools. Further calls are
/// rejected with TOO_MANY_HELD_CALLS.
const MAX_HELD_PER_WORKSPACE: usize = 64;
/// Calls held in total. Further calls are rejected with TOO_MANY_HELD_CALLS.
const MAX_HELD: usize = 1024;

#[derive(Debug)]
pub(super) struct AgentWaiter {
    snapshots: SnapshotReceiver,
    wakes: mpsc::Sender<WorkspaceId>,
    queue: WakeQueue,
}

/// The decision whether a request can be forwarded now.
enum ForwardDecision {
    Forward(Arc<AgentView>),
    Hold,
    Reject(WireError),
}

impl AgentWaiter {
    pub(super) fn new(snapshots: SnapshotReceiver, wakes: mpsc::Sender<WorkspaceId>, gauge: Gauge) -> Self {
        Self { snapshots, wakes, queue: WakeQueue::new(gauge) }
    }

    /// Returns the agent of a workspace that the caller may see. If the workspace is not awake, a
    /// request that `wakes` is held in the workspace's queue. Its ticket is returned with the
    /// agent. The next held request proceeds once the ticket is dropped.
    pub(super) async fn agent(
        &self,
        caller: &Principal,
        id: &WorkspaceId,
        wakes: bool,
    ) -> Result<(Arc<AgentView>, Option<Ticket>), WireError> {
        let mut snapshots = self.snapshots.clone();
        let view = find(&mut snapshots, caller, id)?;
        let now = match decide_forward(&view, wakes) {
            // A request never overtakes requests that are held already.
            ForwardDecision::Forward(agent) if wakes && self.queue.has_waiting(id) => Some(agent),
            ForwardDecision::Forward(agent) => return Ok((agent, None)),
            ForwardDecision::Reject(error) if error.reason() != Reason::WorkspaceFailed || !wakes => {
                return Err(error);
            }
            // The request retries a failed start or restore, so the earlier failure does not reject
            // it.
            ForwardDecision::Reject(_) | ForwardDecision::Hold => None,
        };
        let is_first = !self.queue.has_waiting(id);
        let mut ticket = match (self.queue.enqueue(id), now) {
            (Ok(ticket), _) => ticket,
            (Err(_), Some(agent)) => return Ok((agent, None)),
            (Err(full), None) => return Err(full),
        };
        if is_first {
            // One wake request is enough. The others repeat it only if they are still held later.
            self.wake(id);
        }
        // State and time identify a failure. The view's version does not, because it also grows
        // when only the time of the next retry changes.
        let first = (view.state, view.since);
        let waited = timeout(HOLD_TIMEOUT, async {
            loop {
                let view = find(&mut snapshots, caller, id)?;
                match decide_forward(&view, true) {
                    ForwardDecision::Forward(agent) if ticket.is_first() => return Ok(agent),
                    // The failure from before the request does not end it.
                    ForwardDecision::Reject(error)
                        if error.reason() != Reason::WorkspaceFailed || (view.state, view.since) != first =>
                    {
                        return Err(error);
                    }
                    ForwardDecision::Forward(_) | ForwardDecision::Reject(_) | ForwardDecision::Hold => {}
                }
                tokio::select! {
                    changed = snapshots.changed() => changed.map_err(|_| shutting_down())?,
                    () = ticket.moved() => {}
                    // A full channel may have dropped the wake request, or a user may have put the
                    // workspace to sleep since. Repeating the request does no harm.
                    () = sleep(RETRY_INTERVAL) => self.wake(id),
                }
            }
        });
        match waited.await {
            Ok(agent) => Ok((agent?, Some(ticket))),
            Err(_) => Err(wake_timeout(find(&mut snapshots, caller, id)?.as_ref())),
        }
    }

    /// Sends a wake request. Drops it if the channel is full; held requests repeat it.
    fn wake(&self, id: &WorkspaceId) {
        let _queued = self.wakes.try_send(id.clone());
    }
}

fn find(
    snapshots: &mut SnapshotReceiver,
    caller: &Principal,
    id: &WorkspaceId,
) -> Result<Arc<WorkspaceView>, WireError> {
    caller.find(&snapshots.borrow_and_update(), id).cloned()
}

/// Returns the error for a workspace that no longer exists.
pub(super) fn deleted(id: &WorkspaceId) -> WireError {
    let message = "the workspace was deleted; its archives, if it has any, can be restored";
    WireError::new(Reason::Deleting, message).with("id", id).with("undelete", false)
}

/// Returns the error for a workspace that is being deleted, or of which only archives are left. No
/// request wakes such a workspace.
pub(super) fn deleting(view: &WorkspaceView) -> WireError {
    if view.is_gone() {
        return deleted(&view.spec.id);
    }
    let back = if view.undelete { "; undelete takes that back" } else { "" };
    let now = reasons::message(&view.reason);
    let message = format!("the workspace is being deleted ({now}){back}");
    WireError::new(Reason::Deleting, message).with("id", &view.spec.id).with("undelete", view.undelete)
}

/// Returns the error for a request that was held for [`HOLD_TIMEOUT`]. The error names what the
/// workspace waits for.
fn wake_timeout(view: &WorkspaceView) -> WireError {
    let why = match view.queue_position {
        Some(position) => {
            format!("it waits for quota or capacity at position {position} of the admission queue")
        }
        None => reasons::message(&view.reason),
    };
    let message = format!("the workspace was not awake within {} s: {why}; retry", HOLD_TIMEOUT.as_secs());
    WireError::new(Reason::WakeTimeout, message).with("id", &view.spec.id)
}

fn decide_forward(view: &WorkspaceView, wakes: bool) -> ForwardDecision {
    let not_awake = |condition: &str, state: &str| {
        let message =
            format!("the workspace is {condition}, and this request does not wake it; wake it, then retry");
        let error = WireError::new(Reason::NotAwake, message).with("state", state);
        ForwardDecision::Reject(error.with("id", &view.spec.id).retry_after(RETRY_INTERVAL))
    };
    let failed = |what: &str| {
        let cause = reasons::start_failure(&view.reason);
        let error = WireError::new(Reason::WorkspaceFailed, format!("the workspace failed {what}: {cause}"));
        ForwardDecision::Reject(error.with("cause", cause).with("id", &view.spec.id))
    };
    match view.state {
        // No request can wake this workspace, so the call is not held. Calls that do not wake are
        // forwarded until the agent has ended.
        _ if view.spec.desired_state.is_gone() && (wakes || view.agent.is_none()) => {
            ForwardDecision::Reject(deleting(view))
        }
        State::Archived if wakes && matches!(view.reason, StateReason::RestoreFailed { .. }) => {
            failed("to restore")
        }
        // The request is forwarded if the sleep is cancelled. Otherwise it is held until the
        // workspace is awake again.
        State::FallingAsleep if wakes => ForwardDecision::Hold,
        State::Awake | State::FallingAsleep => match &view.agent {
            Some(agent) => ForwardDecision::Forward(agent.clone()),
            None if wakes => ForwardDecision::Hold,
            None => ForwardDecision::Reject(unreachable_agent(&view.spec.id)),
        },
        State::Queued | State::Starting | State::Asleep | State::Archiving | State::Archived if wakes => {
            ForwardDecision::Hold
        }
        State::Queued => not_awake("waiting for quota or capacity", "queued"),
        State::Starting => not_awake("starting", "starting"),
        State::Asleep => not_awake("asleep", "asleep"),
        State::Archiving => not_awake("being archived", "archiving"),
        State::Archived => not_awake("archived", "archived"),
        State::Deleting => ForwardDecision::Reject(deleting(view)),
        State::Failed => failed("to start"),
    }
}

/// The queues of all workspaces. Clones share them.
#[derive(Debug, Clone)]
struct WakeQueue {
    by_workspace: Arc<Mutex<HashMap<WorkspaceId, WorkspaceQueue>>>,
    gauge: Gauge,
}

#[derive(Debug, Default)]
struct WorkspaceQueue {
    held: BTreeSet<u64>,
    next: u64,
    moved: watch::Sender<()>,
}

/// A call's position in its queue. Dropping it lets the next call proceed.
pub(super) struct Ticket {
    id: WorkspaceId,
    number: u64,
    moved: watch::Receiver<()>,
    queue: WakeQueue,
}

impl WakeQueue {
    fn new(gauge: Gauge) -> Self {
        Self { by_workspace: Arc::default(), gauge }
    }

    /// Returns whether any call is held for this workspace.
    fn has_waiting(&self, id: &WorkspaceId) -> bool {
        self.all().contains_key(id)
    }

    /// Appends a call to the workspace's queue. Fails with `TOO_MANY_HELD_CALLS` at the limits.
    fn enqueue(&self, id: &WorkspaceId) -> Result<Ticket, WireError> {
        let mut all = self.all();
        let mine = all.get(id).map_or(0, |queue| queue.held.len());
        let total: usize = all.values().map(|queue| queue.held.len()).sum();
        for (count, limit, target, what) in [
            (mine, MAX_HELD_PER_WORKSPACE, "this workspace", "calls held for one workspace"),
            (total, MAX_HELD, "workspaces", "calls held for workspaces"),
        ] {
            if count >= limit {
                let message = format!("{limit} calls already wait for {target}; retry later");
                let error = WireError::new(Reason::TooManyHeldCalls, message).retry_after(RETRY_INTERVAL);
                return Err(error.with("limit", limit).with("what", what));
            }
        }
        let queue = all.entry(id.clone()).or_default();
        let number = queue.next;
        queue.next += 1;
        queue.held.insert(number);
        self.gauge.inc();
        Ok(Ticket { id: id.clone(), number, moved: queue.moved.subscribe(), queue: self.clone() })
    }

    fn all(&self) -> MutexGuard<'_, HashMap<WorkspaceId, WorkspaceQueue>> {
        self.by_workspace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// Returns whether no held call precedes this one.
    fn is_first(&self) -> bool {
        self.queue.all().get(&self.id).is_none_or(|queue| queue.held.first() == Some(&self.number))
    }

    /// Waits until a call leaves the queue. A departure since the last wait counts. Cancel-safe.
    async fn moved(&mut self) {
        // Fails only if the sender is dropped. The queue owns it and lives as long as this ticket.
        let _lasts = self.moved.changed().await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut all = self.queue.all();
        self.queue.gauge.dec();
        let Some(queue) = all.get_mut(&self.id) else { return };
        queue.held.remove(&self.number);
        queue.moved.send_replace(());
        if queue.held.is_empty() {
            all.remove(&self.id);
        }
    }
}
