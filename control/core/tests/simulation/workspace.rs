//! Model of one workspace outside the control plane: its storage, agents and archives, and the
//! evidence that `laws` checks.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use podling_core::{
    observed::UseState,
    status::Urgency,
    workspace::{Epoch, Resources},
};

/// Content of storage to which no agent has written.
pub(crate) const EMPTY: u64 = 0;

/// Content of the storage. Every write changes the number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Storage {
    None,
    Complete(u64),
    /// Partly removed or partly restored.
    Partial,
}

#[derive(Debug)]
pub(crate) struct SimulatedWorkspace {
    pub(crate) storage: Storage,
    /// The content that was written last, even if it is only in an archive now. [`EMPTY`] means that
    /// nothing was written.
    pub(crate) latest_content: u64,
    /// Content of each archive in the backup store, by storage generation.
    pub(crate) stored_archives: BTreeMap<u64, u64>,
    pub(crate) agents: BTreeMap<Epoch, Agent>,
    /// Whether programs of an ended agent still run.
    pub(crate) orphans: bool,
    pub(crate) started: BTreeSet<Epoch>,
    /// The storage was filled from an archive, and no agent that serves a user has run since.
    pub(crate) only_restored: bool,
    /// Ended agents that the backend has not reported yet.
    pub(crate) unreported_ends: VecDeque<Epoch>,
    pub(crate) user_present: bool,
    pub(crate) evidence: LawEvidence,
}

/// Facts that only `laws` uses. Times are readings of `Simulation::true_observed_time`.
#[derive(Debug, Default)]
pub(crate) struct LawEvidence {
    /// A request to wake was stored, and the workspace has not acted on it while awake.
    pub(crate) wake_promised: bool,
    /// The promise survives a crash only if the durable status reflects this or a later generation.
    pub(crate) wake_survives_from: i64,
    /// A user has requested a wake, and the workspace has not acted on it while awake.
    pub(crate) wake_requested: bool,
    /// The desired `Asleep` has the number of a request that no earlier spec had.
    pub(crate) asleep_is_numbered: bool,
    pub(crate) discarded: bool,
    /// A request to sleep unless in use was accepted, and no prepare was ordered since then.
    pub(crate) sleep_requested: bool,
    /// Times when the workspace fell asleep, by the `slept_at` in its status.
    pub(crate) slept_at_times: BTreeMap<Duration, Duration>,
    pub(crate) woke_at: Duration,
    /// Times when the workspace joined the admission queue, by the `queued_at` in its status.
    pub(crate) queued_at_times: BTreeMap<Duration, Duration>,
    /// Time of each archive, by its storage generation.
    pub(crate) archived_at: BTreeMap<u64, Duration>,
}

#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) maintenance: bool,
    pub(crate) claimed: bool,
    /// The agent is suspended until this time of the simulation's clock, in milliseconds.
    pub(crate) suspended_until: u64,
    pub(crate) stream: Option<AgentStream>,
    /// The idle timeout in the last claim.
    pub(crate) idle_timeout: Duration,
    /// Idle time between acknowledged heartbeats.
    pub(crate) idle: Duration,
    /// Time of the last use, in milliseconds.
    pub(crate) used_at: u64,
    pub(crate) busy_until: u64,
    /// Sequence number and time of each heartbeat that is not acknowledged.
    pub(crate) unacknowledged: VecDeque<(u64, u64)>,
    pub(crate) acknowledged_at: Option<u64>,
    pub(crate) sequence: u64,
    pub(crate) next_heartbeat: u64,
    /// The agent holds input until this time, in milliseconds. `None` means that it accepts input.
    pub(crate) holding_until: Option<u64>,
    pub(crate) forced: bool,
    /// Number of keystrokes that are held.
    pub(crate) held: u32,
    pub(crate) committed: bool,
    /// Number of accepted keystrokes that are not saved yet.
    pub(crate) unsaved: u32,
    /// Resources set by a resize. `None` means those of the start.
    pub(crate) resources: Option<Resources>,
}

/// One stream between an agent and the control plane.
#[derive(Debug)]
pub(crate) struct AgentStream {
    pub(crate) connection: u64,
    /// The stream carries no message until this time, in milliseconds.
    pub(crate) blocked_until: u64,
    pub(crate) up: VecDeque<AgentMessage>,
    pub(crate) down: VecDeque<ControlMessage>,
}

#[derive(Debug, Clone)]
pub(crate) enum AgentMessage {
    Hello,
    Heartbeat {
        sequence: u64,
        used: UseState,
    },
    /// Answer to an ordered action. `Err` holds the reason why the agent declined.
    Result {
        order: u64,
        result: Result<(), &'static str>,
    },
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum ControlMessage {
    Claim { idle_timeout: Duration },
    Ack { sequence: u64 },
    Prepare { order: u64, urgency: Urgency },
    Commit { order: u64 },
    Cancel { order: u64 },
    Dismiss,
}

impl SimulatedWorkspace {
    pub(crate) fn new() -> Self {
        Self {
            storage: Storage::None,
            latest_content: EMPTY,
            stored_archives: BTreeMap::new(),
            agents: BTreeMap::new(),
            orphans: false,
            only_restored: false,
            started: BTreeSet::new(),
            unreported_ends: VecDeque::new(),
            user_present: true,
            evidence: LawEvidence::default(),
        }
    }

    /// Returns whether a process of the user may write to the storage.
    pub(crate) fn serves(&self) -> bool {
        self.orphans || self.agents.values().any(|agent| !agent.maintenance)
    }

    pub(crate) fn runs(&self) -> bool {
        self.orphans || !self.agents.is_empty()
    }

    /// Ends an agent. The backend reports the end later.
    pub(crate) fn end(&mut self, epoch: Epoch) {
        if self.agents.remove(&epoch).is_some() {
            self.unreported_ends.push_back(epoch);
        }
    }
}
