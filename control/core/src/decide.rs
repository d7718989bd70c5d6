//! The state machine of a workspace: what it is, what has to be done, and when to look again.
//!
//! ```text
//!        made                       (nothing runs, pause over)
//!         │    ┌──────────────────── start ──────────────────────┐
//!         ▼    │                                                 ▼
//!   ┌──▶ Pending ◀────────────── start_failed ─────────────── Starting
//!   │     │  ▲  ▲                                               │ │
//!   │     │  │  └─ died, silent ── Awake ◀──────── hello ───────┘ │
//!   │     │  │                      │ ⟲ healthy                   │
//!   │     └──┼───────────────────── standby ──────────────────────┘
//!   │        │                      ▼
//!   │        ├── come_back ── FallingAsleep
//!   │        │                      │ rest (nothing runs)
//!   │        └── come_back ────── Asleep
//!
//!   any ──── delete ───▶ Deleting: Stop, then Remove, then Forget
//! ```
//!
//! Level-triggered: arrows are followed until none applies, then the order that the phase asks for is given, again and again, until
//! it is observed to be done. An order is therefore no event; the driver keeps at most one per workspace in flight and gives none
//! before the status that stands behind it is durable. Nothing is ordered while nobody knows what runs.

mod arrow;

use std::time::Duration;

use crate::{
    observed::{Observed, Processes},
    status::{Phase, Status},
    time::Timestamp,
    workspace::{Epoch, Spec},
};

/// Pause after the first failure; doubled with each further one.
pub const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause: a workspace that cannot start costs its machine a start every five minutes.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(5 * 60);
/// An agent that lives but has not said hello for so long is given up. Ready agents need milliseconds; a pod's first pull of its
/// image is over before its agent lives.
pub const HELLO_LIMIT: Duration = Duration::from_secs(60);
/// An agent that was heard of once and then falls silent is started anew: killing the link is no way to stay awake (law 4).
pub const SILENCE_LIMIT: Duration = Duration::from_secs(10 * 60);
/// Awake and connected for so long, earlier failures are forgotten.
pub const HEALTHY_AFTER: Duration = Duration::from_secs(120);

/// A side effect, as data. Each is idempotent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Start the agent of this epoch.
    Start(Epoch),
    /// End every process of the workspace; done when it is confirmed that none is left.
    Stop,
    /// Remove the storage.
    Remove,
    /// Remove the record; its id stays taken.
    Forget,
}

/// What follows from what is wanted, known and seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The new status.
    pub status: Status,
    /// What has to be done now: one thing at a time.
    pub action: Option<Action>,
    /// When to look again if nothing happens before, and why.
    pub next: Option<(Timestamp, &'static str)>,
}

/// Decides. Pure: the same arguments give the same decision, and a decision's own status decides the same again.
pub fn decide(spec: &Spec, status: &Status, observed: &Observed, now: Timestamp) -> Decision {
    let mut status = status.clone();
    // Ends: no arrow leads back under the same observation. Back to Starting needs a higher epoch than the one that ended, and
    // every failure is followed by a pause or by processes that must end first.
    while let Some(next) = arrow::follow(spec, &status, observed, now) {
        status = next;
    }
    let order = order(&status, observed);
    let blocked = order.and_then(|action| pause_of(action, observed, now));
    if let (Some(_), Some(trouble)) = (blocked, &observed.trouble) {
        status.reason = format!("{}: {}", trouble_words(trouble.action), trouble.error);
    }
    let next =
        blocked.map(|at| (at, "what went wrong is tried again")).or_else(|| next(&status, observed, now));
    Decision { action: if blocked.is_some() { None } else { order }, status, next }
}

/// Somebody waits: the pause of a failed workspace is cut short, though not below the first pause, so that asking in a loop is no
/// way to keep the machine busy.
pub fn hurry(status: &Status, now: Timestamp) -> Status {
    let mut status = status.clone();
    if let Phase::Pending { not_before } = &mut status.phase {
        let soonest = status.since.plus(FIRST_PAUSE).max(now);
        *not_before = soonest.min(*not_before);
    }
    status
}

/// What the phase asks for.
fn order(status: &Status, observed: &Observed) -> Option<Action> {
    match (status.phase, &observed.processes) {
        (_, Processes::Unseen) | (Phase::Awake, _) => None,
        (Phase::Starting, Processes::None) => Some(Action::Start(status.epoch)),
        (Phase::Starting, Processes::Some(_)) => None,
        (_, Processes::Some(_)) => Some(Action::Stop),
        (Phase::Deleting, Processes::None) if !observed.removed => Some(Action::Remove),
        (Phase::Deleting, Processes::None) => Some(Action::Forget),
        (Phase::Pending { .. } | Phase::FallingAsleep | Phase::Asleep, Processes::None) => None,
    }
}

/// Until when this action waits because it has just failed.
fn pause_of(action: Action, observed: &Observed, now: Timestamp) -> Option<Timestamp> {
    let trouble = observed.trouble.as_ref().filter(|t| t.action == action)?;
    let until = trouble.at.plus(pause(trouble.failures));
    waits(until, now).then_some(until)
}

fn next(status: &Status, observed: &Observed, now: Timestamp) -> Option<(Timestamp, &'static str)> {
    let connected = observed.connected == Some(status.epoch);
    let left = |limit: Duration| now.plus(limit.saturating_sub(observed.silence));
    match status.phase {
        Phase::Pending { not_before } if observed.processes == Processes::None => {
            Some((not_before, "its agent is started again"))
        }
        Phase::Starting if observed.processes.lives(status.epoch) => {
            Some((left(HELLO_LIMIT), "an agent that does not say hello is given up"))
        }
        Phase::Awake if !connected && observed.processes.lives(status.epoch) => {
            Some((left(SILENCE_LIMIT), "a silent agent is started anew"))
        }
        Phase::Awake if connected && status.failures > 0 => {
            Some((status.since.plus(HEALTHY_AFTER), "it counts as healthy"))
        }
        Phase::Pending { .. }
        | Phase::Starting
        | Phase::Awake
        | Phase::FallingAsleep
        | Phase::Asleep
        | Phase::Deleting => None,
    }
}

/// The pause after so many failures in a row.
fn pause(failures: u32) -> Duration {
    match failures.checked_sub(1) {
        None => Duration::ZERO,
        Some(doublings) => FIRST_PAUSE.saturating_mul(1 << doublings.min(16)).min(LONGEST_PAUSE),
    }
}

/// Whether `until` is still to come. A pause longer than any we give means the clock was set back: it is over.
fn waits(until: Timestamp, now: Timestamp) -> bool {
    let left = until.since(now);
    !left.is_zero() && left <= LONGEST_PAUSE
}

fn trouble_words(action: Action) -> &'static str {
    match action {
        Action::Start(_) => "its agent cannot be started",
        Action::Stop => "its processes cannot be ended",
        Action::Remove => "its storage cannot be removed",
        Action::Forget => "its record cannot be removed",
    }
}
