//! Finds the agent of a workspace, and holds calls that wake until there is one. Must not know what a call is.

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

/// How long a call is held for a workspace that starts: a cold start with room to spare, and well below the minute after
/// which proxies give up. Then WAKE_TIMEOUT.
const HOLD_TIMEOUT: Duration = Duration::from_secs(30);
/// What a client waits before it asks for a workspace again that is not awake.
pub(super) const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Who waits for what.
#[derive(Debug)]
pub(super) struct AgentWaiter {
    snapshots: Snapshots,
    wakes: mpsc::Sender<WorkspaceId>,
    queue: WakeQueue,
}

/// What is to be done with a call, as things are.
enum ForwardDecision {
    Forward(Arc<AgentView>),
    Hold,
    Refuse(WireError),
}

impl AgentWaiter {
    pub(super) fn new(snapshots: Snapshots, wakes: mpsc::Sender<WorkspaceId>, gauge: Gauge) -> Self {
        Self { snapshots, wakes, queue: WakeQueue::new(gauge) }
    }

    /// The agent of a workspace the caller may see. If there is none just now, a call that `wakes` waits for it, and is let go on in its
    /// ticket: the one behind it waits until that is dropped.
    pub(super) async fn agent(
        &self,
        caller: &Principal,
        id: &WorkspaceId,
        wakes: bool,
    ) -> Result<(Arc<AgentView>, Option<Ticket>), WireError> {
        let mut snapshots = self.snapshots.clone();
        let view = find(&mut snapshots, caller, id)?;
        let now = match decide_forward(&view, wakes) {
            // Nobody overtakes those who are held.
            ForwardDecision::Forward(agent) if wakes && self.queue.has_waiting(id) => Some(agent),
            ForwardDecision::Forward(agent) => return Ok((agent, None)),
            ForwardDecision::Refuse(error) if view.state != State::Failed || !wakes => return Err(error),
            // A start that failed is tried again for whoever comes; only a failure from here on counts.
            ForwardDecision::Refuse(_) | ForwardDecision::Hold => None,
        };
        let is_first = !self.queue.has_waiting(id);
        let mut ticket = match (self.queue.enqueue(id), now) {
            (Ok(ticket), _) => ticket,
            (Err(_), Some(agent)) => return Ok((agent, None)),
            (Err(full), None) => return Err(full),
        };
        if is_first {
            // One waker for each workspace.
            self.wake(id);
        }
        // Not its version: that also grows when only the next try is moved, and the failure is still the old one.
        let first = (view.state, view.since);
        let waited = timeout(HOLD_TIMEOUT, async {
            loop {
                let view = find(&mut snapshots, caller, id)?;
                match decide_forward(&view, true) {
                    ForwardDecision::Forward(agent) if ticket.is_first() => return Ok(agent),
                    ForwardDecision::Refuse(error) if (view.state, view.since) != first => return Err(error),
                    ForwardDecision::Forward(_) | ForwardDecision::Refuse(_) | ForwardDecision::Hold => {}
                }
                tokio::select! {
                    changed = snapshots.changed() => changed.map_err(|_| shutting_down())?,
                    () = ticket.moved() => {}
                    // A wish may have got lost, or somebody put it to sleep meanwhile: a wish more does no harm.
                    () = sleep(RETRY_INTERVAL) => self.wake(id),
                }
            }
        });
        match waited.await {
            Ok(agent) => Ok((agent?, Some(ticket))),
            Err(_) => Err(wake_timeout(find(&mut snapshots, caller, id)?.as_ref())),
        }
    }

    /// A full queue means that others are being woken: the next wish comes in a moment.
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

/// It was held for as long as a call is held: what it would have to wait for.
fn wake_timeout(view: &WorkspaceView) -> WireError {
    let why = match view.queue_position {
        Some(position) => format!("it waits for quota at position {position} of the admission queue"),
        None => reasons::message(&view.reason),
    };
    let message =
        format!("the workspace was not ready within {} s: {why}; try again", HOLD_TIMEOUT.as_secs());
    WireError::new(Reason::WakeTimeout, message).with("id", &view.spec.id)
}

fn decide_forward(view: &WorkspaceView, wakes: bool) -> ForwardDecision {
    let not_awake = |words: &str, state: &str| {
        let message = format!("the workspace is {words}, and this call does not wake it");
        let error = WireError::new(Reason::NotAwake, message).with("state", state);
        ForwardDecision::Refuse(error.with("id", &view.spec.id).retry_after(RETRY_INTERVAL))
    };
    match view.state {
        // Who comes while it falls asleep is served by it if it is held back in time, else once it is awake again.
        State::FallingAsleep if wakes => ForwardDecision::Hold,
        State::Awake | State::FallingAsleep => match &view.agent {
            Some(agent) => ForwardDecision::Forward(agent.clone()),
            None if wakes => ForwardDecision::Hold,
            None => ForwardDecision::Refuse(unreachable_agent(&view.spec.id)),
        },
        State::Queued | State::Starting | State::Asleep | State::Archiving | State::Archived if wakes => {
            ForwardDecision::Hold
        }
        State::Queued => not_awake("waiting for quota", "queued"),
        State::Starting => not_awake("starting", "starting"),
        State::Asleep => not_awake("asleep", "asleep"),
        State::Archiving => not_awake("being archived", "archiving"),
        State::Archived => not_awake("archived", "archived"),
        State::Deleting => ForwardDecision::Refuse(
            WireError::new(Reason::Deleting, "the workspace is being deleted").with("id", &view.spec.id),
        ),
        State::Failed => {
            let cause = reasons::message(&view.reason);
            let error =
                WireError::new(Reason::WorkspaceFailed, format!("the workspace does not start: {cause}"));
            ForwardDecision::Refuse(error.with("cause", cause).with("id", &view.spec.id))
        }
    }
}
