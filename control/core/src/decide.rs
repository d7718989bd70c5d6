//! The state machine of a workspace: what it is, what has to be done, and when to look again.
//!
//! ```text
//!   made ──▶ Queued ── admit ──▶ Pending ── start ──▶ Starting ── hello ──▶ Awake ⟲ healthy, resized
//!              ▲  ▲                │ ▲                  │ │                  │ │ ▲
//!              │  │                │ ├── start_failed ──┘ │                  │ │ │
//!              │  │                │ └── died, silent ────┼──────────────────┤ │ │
//!              │  │                ▼                      ▼                  │ │ reprieve, declined
//!              │  │             FallingAsleep ◀──────── end_now ─────────────┘ ▼ │
//!              │  │              │      ▲ ◀─────────── end_now ────────── Preparing
//!              │  │         rest │      │                                      │ prepared
//!              │  │              ▼      └── ready, end_now ── Committing ◀─────┘
//!              │  └─── wake ── Asleep ◀─ kept, put_off ─┐
//!              │                │  └─ archive_due ──▶ Opening(Archive) ── opened ──▶ Working(Archive)
//!           restored            │ let_go
//!              │                ▼
//!              │             Archived ◀─ put_off ───────┐
//!              │                │  └─ restore ──────▶ Opening(Restore) ── opened ──▶ Working(Restore)
//!              └────────────────┼──────────────────────────────────────────────────────────┘
//!                               │ nothing_left
//!   any ───── discard ─────▶ Deleting: Stop, Remove, Expire each archive, Forget
//! ```
//!
//! Who is `Queued` for the first time joins the line (`lined_up`); `resized` also stays in Pending and Starting. `worn_out` leads from Awake and Preparing to FallingAsleep, in place of
//! `died` and `silent`, when its agent was started again before and nobody has used it since. `wake` also leads from Opening(Archive)
//! and Working(Archive) to Queued: who comes back does not wait for an archive.
//!
//! Level-triggered: arrows are followed until none applies, then the order that the phase asks for is given, again and again, until
//! it is observed to be done. An order is therefore no event; the driver keeps at most one per workspace in flight and gives none
//! before the status that stands behind it is durable. Nothing is ordered while nobody knows what runs.
//!
//! Storage goes in two places only: in `Archived`, which is entered when an archive of its present generation is proven (or when
//! what is in it was only being restored from one), and in `Deleting`, which needs somebody's `discard` or that nothing is left.

mod arrow;
mod next;
mod order;
mod pause;

use std::time::Duration;

use crate::{
    mutant,
    observed::{Observed, Trouble},
    status::{Phase, Status, Urgency, Waits},
    time::Timestamp,
    workspace::{Epoch, Resources, Spec},
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
/// Commits whose outcome nobody learned. Then the workspace's processes are ended without its agent's help.
pub const COMMIT_TRIES: u32 = 3;
/// Archives kept of one workspace; with one more the oldest goes early.
pub const MAX_ARCHIVES: usize = 100;

/// Why one is awake that is well.
const SERVED: &str = "its agent serves it";

/// Arrows that one decision follows at most; the longest way in the drawing has nine. One that would go on is a mistake of ours: it is
/// cut off here, so that one workspace never holds up all others, and tests fail.
const MOST_ARROWS: usize = 16;

/// A side effect, as data. Each is idempotent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Start the agent of this epoch.
    Start(Epoch),
    /// Ask the agent whether the workspace may sleep; if so it lets nothing new begin.
    Prepare {
        /// Whose agent.
        epoch: Epoch,
        /// Why, and with that what speaks against it.
        urgency: Urgency,
    },
    /// The agent ends everything and saves it.
    Commit(Epoch),
    /// The agent goes on as if it had not been asked.
    Cancel(Epoch),
    /// Give a running agent what it was given of its owner's share, no more and no less, and end nothing for it.
    Resize {
        /// Which.
        epoch: Epoch,
        /// What it shall have.
        resources: Resources,
    },
    /// End every process of the workspace; done when it is confirmed that none is left.
    Stop,
    /// Read the storage into the backup store, by this agent, and prove it.
    Archive(Epoch),
    /// Fill the storage from its archive, by this agent.
    Restore(Epoch),
    /// Remove the storage.
    Remove,
    /// Remove the archive of this generation.
    Expire(u64),
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
    /// People in the workspace are to be told that it sleeps at this time, and why.
    pub warning: Option<(Timestamp, &'static str)>,
}

/// Decides. Pure: the same arguments give the same decision, and a decision's own status decides the same again.
pub fn decide(spec: &Spec, status: &Status, observed: &Observed, now: Timestamp) -> Decision {
    let mut status = status.clone();
    // Ends: no arrow leads back under the same observation. Back to Starting needs a higher epoch than the one that ended, and
    // every failure is followed by a pause or by processes that must end first.
    for followed in 0.. {
        let Some(next) = arrow::follow(spec, &status, observed, now) else { break };
        debug_assert!(followed < MOST_ARROWS, "{status:?} leads round in circles under {observed:?}");
        if followed >= MOST_ARROWS {
            break;
        }
        mutant::took(&status, &next);
        status = next;
    }
    let order = order::of(spec, &status, observed);
    status = held_up(status, observed, order);
    let blocked = order.and_then(|action| pause::of(action, observed, now));
    if let (Some(_), Some(trouble)) = (blocked, &observed.trouble) {
        status.reason = order::trouble(trouble);
    }
    let again = blocked.map(|at| (at, "what went wrong is tried again"));
    let next = again.into_iter().chain(next::of(spec, &status, observed, now)).min();
    let warning = next::warning(spec, &status, observed, now);
    Decision { action: if blocked.is_some() { None } else { order }, status, next, warning }
}

/// What a start or a resize waits for is its reason as long as it does; and what goes wrong with one that is awake and serves all the same.
fn held_up(status: Status, observed: &Observed, order: Option<Action>) -> Status {
    let usual = match status.phase {
        Phase::Starting | Phase::Opening(_) => "its agent is being started",
        Phase::Awake => SERVED,
        _ => return status,
    };
    let stands = |trouble: &&Trouble| status.phase == Phase::Awake && Some(trouble.action) == order;
    let trouble = observed.trouble.as_ref().filter(stands);
    let waits = observed
        .waits
        .clone()
        .or_else(|| trouble.map(|trouble| Waits { why: order::trouble(trouble), for_room: false }));
    if waits == status.waits {
        return status;
    }
    let reason = waits.as_ref().map_or(usual, |waits| &waits.why).to_owned();
    Status { reason, waits, ..status }
}

/// Somebody waits: the pause of a failed workspace is cut short, though not below the first pause, so that asking in a loop is no
/// way to keep the machine busy.
pub fn hurry(status: &Status, now: Timestamp) -> Status {
    let mut status = status.clone();
    let soonest = status.since.plus(FIRST_PAUSE).max(now);
    if let Phase::Pending { not_before } = &mut status.phase {
        *not_before = soonest.min(*not_before);
    }
    status.upkeep.not_before = soonest.min(status.upkeep.not_before);
    status
}
