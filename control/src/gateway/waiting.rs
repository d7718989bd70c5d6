//! Finds the agent of a workspace, and holds waking requests until it is connected. Must not know
//! what a request contains.

use std::{sync::Arc, time::Duration};

use podling_core::{id::WorkspaceId, workspace::State};
use podling_proto::error::{Reason, WireError};
use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

use super::{
    shutting_down, unreachable_agent,
    wake_queue::{Ticket, WakeQueue},
};
use crate::{
    principal::Principal,
    reasons,
    snapshot::{AgentView, Snapshots, WorkspaceView},
};

/// Longest time for which a request is held while its workspace starts. That is more than a cold
/// start takes, and well below the minute after which proxies give up. Then the request fails with
/// WAKE_TIMEOUT.
const HOLD_TIMEOUT: Duration = Duration::from_secs(30);
/// Delay after which a client may ask again for a workspace that is not awake.
pub(super) const RETRY_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct AgentWaiter {
    snapshots: Snapshots,
    wakes: mpsc::Sender<WorkspaceId>,
    queue: WakeQueue,
}

/// Whether a request can be forwarded now.
enum ForwardDecision {
    Forward(Arc<AgentView>),
    Hold,
    Reject(WireError),
}

impl AgentWaiter {
    pub(super) fn new(snapshots: Snapshots, wakes: mpsc::Sender<WorkspaceId>, gauge: Gauge) -> Self {
        Self { snapshots, wakes, queue: WakeQueue::new(gauge) }
    }

    /// Returns the agent of a workspace that the caller may see. While no agent is connected, a
    /// request that `wakes` waits in the workspace's queue. It then returns with its ticket, and
    /// the next request in the queue waits until that is dropped.
    pub(super) async fn agent(
        &self,
        caller: &Principal,
        id: &WorkspaceId,
        wakes: bool,
    ) -> Result<(Arc<AgentView>, Option<Ticket>), WireError> {
        let mut snapshots = self.snapshots.clone();
        let view = find(&mut snapshots, caller, id)?;
        let now = match decide_forward(&view, wakes) {
            // A request never overtakes the ones that are held already.
            ForwardDecision::Forward(agent) if wakes && self.queue.has_waiting(id) => Some(agent),
            ForwardDecision::Forward(agent) => return Ok((agent, None)),
            ForwardDecision::Reject(error) if view.state != State::Failed || !wakes => return Err(error),
            // The request retries a failed start, so only a failure from here on counts.
            ForwardDecision::Reject(_) | ForwardDecision::Hold => None,
        };
        let is_first = !self.queue.has_waiting(id);
        let mut ticket = match (self.queue.enqueue(id), now) {
            (Ok(ticket), _) => ticket,
            (Err(_), Some(agent)) => return Ok((agent, None)),
            (Err(full), None) => return Err(full),
        };
        if is_first {
            // Only the first request in the queue wakes the workspace.
            self.wake(id);
        }
        // The version is not compared: it also grows when only the next retry moves, although the
        // failure is still the old one.
        let first = (view.state, view.since);
        let waited = timeout(HOLD_TIMEOUT, async {
            loop {
                let view = find(&mut snapshots, caller, id)?;
                match decide_forward(&view, true) {
                    ForwardDecision::Forward(agent) if ticket.is_first() => return Ok(agent),
                    ForwardDecision::Reject(error) if (view.state, view.since) != first => return Err(error),
                    ForwardDecision::Forward(_) | ForwardDecision::Reject(_) | ForwardDecision::Hold => {}
                }
                tokio::select! {
                    changed = snapshots.changed() => changed.map_err(|_| shutting_down())?,
                    () = ticket.moved() => {}
                    // The wake request may be lost, or a user may have put the workspace to sleep
                    // since. Repeating it does no harm.
                    () = sleep(RETRY_INTERVAL) => self.wake(id),
                }
            }
        });
        match waited.await {
            Ok(agent) => Ok((agent?, Some(ticket))),
            Err(_) => Err(wake_timeout(find(&mut snapshots, caller, id)?.as_ref())),
        }
    }

    /// Requests a wake. If the channel is full, other workspaces are being woken, and the retry
    /// follows soon.
    fn wake(&self, id: &WorkspaceId) {
        let _queued = self.wakes.try_send(id.clone());
    }
}

fn find(
    snapshots: &mut Snapshots,
    caller: &Principal,
    id: &WorkspaceId,
) -> Result<Arc<WorkspaceView>, WireError> {
    caller.find(&snapshots.borrow_and_update(), id).cloned()
}

/// The error of a request that was held for the longest time; it names what the workspace waits
/// for.
fn wake_timeout(view: &WorkspaceView) -> WireError {
    let why = match view.queue_position {
        Some(position) => format!("it waits for quota at position {position} of the admission queue"),
        None => reasons::message(&view.reason),
    };
    let message = format!("the workspace was not awake within {} s: {why}; retry", HOLD_TIMEOUT.as_secs());
    WireError::new(Reason::WakeTimeout, message).with("id", &view.spec.id)
}

fn decide_forward(view: &WorkspaceView, wakes: bool) -> ForwardDecision {
    let not_awake = |condition: &str, state: &str| {
        let message = format!("the workspace is {condition}, and this request does not wake it");
        let error = WireError::new(Reason::NotAwake, message).with("state", state);
        ForwardDecision::Reject(error.with("id", &view.spec.id).retry_after(RETRY_INTERVAL))
    };
    match view.state {
        // The agent admits a held request if the sleep is cancelled in time. Otherwise the request
        // waits until the workspace is awake again.
        State::FallingAsleep if wakes => ForwardDecision::Hold,
        State::Awake | State::FallingAsleep => match &view.agent {
            Some(agent) => ForwardDecision::Forward(agent.clone()),
            None if wakes => ForwardDecision::Hold,
            None => ForwardDecision::Reject(unreachable_agent(&view.spec.id)),
        },
        State::Queued | State::Starting | State::Asleep | State::Archiving | State::Archived if wakes => {
            ForwardDecision::Hold
        }
        State::Queued => not_awake("waiting for quota", "queued"),
        State::Starting => not_awake("starting", "starting"),
        State::Asleep => not_awake("asleep", "asleep"),
        State::Archiving => not_awake("being archived", "archiving"),
        State::Archived => not_awake("archived", "archived"),
        State::Deleting => ForwardDecision::Reject(
            WireError::new(Reason::Deleting, "the workspace is being deleted").with("id", &view.spec.id),
        ),
        State::Failed => {
            let cause = reasons::message(&view.reason);
            let error =
                WireError::new(Reason::WorkspaceFailed, format!("the workspace failed to start: {cause}"));
            ForwardDecision::Reject(error.with("cause", cause).with("id", &view.spec.id))
        }
    }
}
