//! The state machine of a workspace: computes its next status, the action that is due, and when to
//! decide again.
//!
//! ```text
//! created ──▶ Queued ── admit ──▶ Pending ── start ──▶ Starting ── hello ──▶ Awake ⟲ healthy, resized
//!              ▲  ▲                │ ▲                  │ │                  │ │ ▲
//!              │  │                │ ├── start_failed ──┘ │                  │ │ │
//!              │  │                │ └── died, silent ────┼──────────────────┤ │ │
//!              │  │                ▼                      ▼                  │ │ cancel_sleep, declined
//!              │  │             FallingAsleep ◀──────── end_now ─────────────┘ ▼ │
//!              │  │              │      ▲ ◀─────────── end_now ────────── Preparing
//!              │  │      stopped │      │                                      │ prepared
//!              │  │              ▼      └── ready, end_now ── Committing ◀─────┘
//!              │  └─── wake ── Asleep ◀─ archived, retry_later ──────────────────────┐
//!              │                │  └─ archive_due ─▶ Maintenance(Archive, Starting) ─ opened ─▶ (…, Running)
//!           restored            │ release_storage
//!              │                ▼
//!              │             Archived ◀─ retry_later ────────────────────────────────┐
//!              │                │  └─ restore ─────▶ Maintenance(Restore, Starting) ─ opened ─▶ (…, Running)
//!              └────────────────┼─────────────────────────────────────────────────────────────────────┘
//!                               │ nothing_left
//!   any ───── discard ─────▶ Deleting: Stop, Remove, Expire each archive, Forget
//! ```
//!
//! Not drawn: `enqueue` gives a new `Queued` workspace its position in the admission queue.
//! `resized` also applies in Pending and Starting. `stop_restarting` leads from Awake and Preparing
//! to FallingAsleep, in place of `died` and `silent`, when the agent was restarted before and the
//! workspace was not used in between. `wake` also leads from Maintenance(Archive) to Queued, so
//! that a request never waits for an archive.
//!
//! The machine is level-triggered. Transitions are followed until none applies. Then the phase asks
//! for an action until that action is observed to be done. The driver keeps at most one action per
//! workspace in flight. It orders an action only once the status that asks for it is durable. No
//! action is ordered while it is unknown which processes run.
//!
//! Storage is removed in two phases only. `Archived` is entered with a proven archive of the
//! present storage generation, or after an unfinished restore. `Deleting` is entered on an explicit
//! discard, or when nothing is left.

mod action;
mod backoff;
mod next;
mod transition;

use std::time::Duration;

use crate::{
    mutant,
    observed::{ActionFailure, Observed},
    reason::{NextStep, Operation, SleepCause, StateReason, Wait, WaitReason},
    status::{Phase, Status, Urgency},
    time::Timestamp,
    workspace::{Epoch, Resources, Spec},
};

/// Pause before the first retry of a failed action. Each further failure doubles it.
pub const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause before a retry. A workspace that cannot start costs one start every five minutes.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(5 * 60);
/// Time that a running agent has to say hello. Agents need milliseconds; pulling an image does not
/// count.
pub const HELLO_LIMIT: Duration = Duration::from_secs(60);
/// Silence after which an agent that was connected before is restarted. Cutting the connection must
/// not keep a workspace awake (law 4).
pub const SILENCE_LIMIT: Duration = Duration::from_secs(10 * 60);
/// Time awake and connected after which earlier failures are forgotten.
pub const HEALTHY_AFTER: Duration = Duration::from_secs(120);
/// Commits with an unknown outcome after which the processes are ended without the agent's help.
pub const COMMIT_TRIES: u32 = 3;
/// Archives retained per workspace. One more expires the oldest early.
pub const MAX_ARCHIVES: usize = 100;

/// Transitions that one decision follows at most; the longest path in the drawing has nine. A
/// decision that reaches the limit has found a cycle, which is a bug. It stops there, so that one
/// workspace never blocks the others, and tests fail.
const MAX_TRANSITIONS: usize = 16;

/// A side effect, as data. Every action is idempotent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Start the agent of this epoch.
    Start(Epoch),
    /// Ask the agent to prepare for sleep: it declines, or holds new requests from then on.
    Prepare {
        epoch: Epoch,
        urgency: Urgency,
    },
    /// Let the agent end its programs and save the terminals.
    Commit(Epoch),
    /// Let the agent of a cancelled sleep go on.
    Cancel(Epoch),
    /// Set the resources of a running agent to what is allocated, without ending anything.
    Resize {
        epoch: Epoch,
        resources: Resources,
    },
    /// End every process of the workspace. Done when it is confirmed that none is left.
    Stop,
    /// Read the storage into the backup store through this agent, and prove the archive.
    Archive(Epoch),
    /// Fill the storage from its archive through this agent.
    Restore(Epoch),
    Remove,
    /// Remove the archive of this storage generation.
    Expire(u64),
    /// Remove the record. Its id stays reserved.
    Forget,
}

/// The result of [`decide()`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub status: Status,
    /// The one action that is due now.
    pub action: Option<Action>,
    /// When to decide again if nothing happens before, and which step is due then.
    pub next: Option<(Timestamp, NextStep)>,
    /// When the workspace falls asleep, if its users are to be warned now.
    pub warning: Option<(Timestamp, SleepCause)>,
}

/// Decides what follows from the spec, the status and the observations. Pure, and idempotent on its
/// own status.
pub fn decide(spec: &Spec, status: &Status, observed: &Observed, now: Timestamp) -> Decision {
    let mut status = status.clone();
    // The loop ends: no transition leads back under the same observations. A new start needs a
    // higher epoch than the one that ended. Every failure is followed by a pause, or by processes
    // that have to end first.
    for followed in 0.. {
        let Some(next) = transition::follow(spec, &status, observed, now) else { break };
        debug_assert!(followed < MAX_TRANSITIONS, "{status:?} cycles under {observed:?}");
        if followed >= MAX_TRANSITIONS {
            break;
        }
        mutant::took(&status, &next);
        status = next;
    }
    let due = action::of(spec, &status, observed);
    status = with_wait(status, observed, due);
    let retried = due.and_then(|action| Some((backoff::of(action, observed, now)?, action)));
    if let (Some(_), Some(last)) = (retried, &observed.last_failure) {
        status.reason = last.failure.as_reason(last.action);
    }
    let retry = retried.map(|(at, action)| (at, NextStep::RetryAction(action.into())));
    let next = retry.into_iter().chain(next::of(spec, &status, observed, now)).min();
    let warning = next::warning(spec, &status, observed, now);
    Decision { action: due.filter(|_| retried.is_none()), status, next, warning }
}

/// Sets the reason to what a start or resize waits for, or to the failure of an action that an
/// awake workspace retries.
fn with_wait(status: Status, observed: &Observed, due: Option<Action>) -> Status {
    let usual = match status.phase {
        Phase::Starting => StateReason::AgentStarting,
        Phase::Maintenance { stage: crate::status::MaintenanceStage::Starting, .. } => {
            StateReason::AgentStarting
        }
        Phase::Awake => StateReason::AgentConnected,
        _ => return status,
    };
    let concerns = |last: &&ActionFailure| status.phase == Phase::Awake && Some(last.action) == due;
    let failure = observed.last_failure.as_ref().filter(concerns).map(|last| Wait {
        reason: WaitReason::ActionFailed(Operation::from(last.action)),
        detail: last.failure.detail().to_owned(),
    });
    let waits = observed.waits.clone().or(failure);
    if waits == status.waits {
        return status;
    }
    let reason = waits.as_ref().map_or(usual, Wait::as_reason);
    Status { reason, waits, ..status }
}

/// Shortens the pause of a failed workspace because a request waits for it. The pause never falls
/// below [`FIRST_PAUSE`], so that repeated requests cannot keep the machine busy.
pub fn shorten_backoff(status: &Status, now: Timestamp) -> Status {
    let mut status = status.clone();
    let soonest = status.since.plus(FIRST_PAUSE).max(now);
    if let Phase::Pending { not_before } = &mut status.phase {
        *not_before = soonest.min(*not_before);
    }
    status.maintenance_retry.not_before = soonest.min(status.maintenance_retry.not_before);
    status
}
