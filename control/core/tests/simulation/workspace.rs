//! The simulated side of one workspace: its storage, agents and archives, and the evidence that the
//! laws compare them with.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use podling_core::{
    observed::Used,
    status::Urgency,
    workspace::{Epoch, Resources},
};

/// Content of the storage, as a number that every write changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Storage {
    None,
    Whole(u64),
    /// Partly removed or partly restored.
    Half,
}

#[derive(Debug)]
pub(crate) struct SimulatedWorkspace {
    pub(crate) storage: Storage,
    /// Content that the user wrote last, wherever it is now. 0: nothing yet.
    pub(crate) latest_content: u64,
    /// Content of each archive in the backup store, by storage generation.
    pub(crate) stored_archives: BTreeMap<u64, u64>,
    pub(crate) agents: BTreeMap<Epoch, Agent>,
    /// Whether programs of an ended agent still run.
    pub(crate) orphans: bool,
    pub(crate) started: BTreeSet<Epoch>,
    /// The storage was filled from an archive, and no user's agent has run since.
    pub(crate) only_restored: bool,
    /// Ended agents that the backend has not reported yet.
    pub(crate) unreported_ends: VecDeque<Epoch>,
    pub(crate) user_present: bool,
    pub(crate) evidence: LawEvidence,
}

/// Facts that only the laws use. Times are readings of `Simulation::true_observed_time`.
#[derive(Debug, Default)]
pub(crate) struct LawEvidence {
    /// A request to wake was confirmed, and the workspace has not been awake since.
    pub(crate) wake_promised: bool,
    pub(crate) discarded: bool,
    /// A request to sleep unless in use was accepted, and no prepare has been ordered since.
    pub(crate) sleep_requested: bool,
    /// When the workspace fell asleep, by `slept_at` of its status.
    pub(crate) slept_at_times: BTreeMap<Duration, Duration>,
    pub(crate) woke_at: Duration,
    /// When the workspace joined the admission queue, by `queued_at` of its status.
    pub(crate) queued_at_times: BTreeMap<Duration, Duration>,
    /// When each archive was made, by storage generation.
    pub(crate) archived_at: BTreeMap<u64, Duration>,
}

#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) maintenance: bool,
    pub(crate) claimed: bool,
    /// The agent is suspended until this time, milliseconds.
    pub(crate) suspended_until: u64,
    pub(crate) stream: Option<AgentStream>,
    /// Policy from the claim.
    pub(crate) idle_timeout: Duration,
    /// Idle time between acknowledged heartbeats.
    pub(crate) idle: Duration,
    /// Time of the last use, milliseconds.
    pub(crate) used_at: u64,
    pub(crate) busy_until: u64,
    /// Sequence number and time of each heartbeat that is not acknowledged.
    pub(crate) unacknowledged: VecDeque<(u64, u64)>,
    pub(crate) acknowledged_at: Option<u64>,
    pub(crate) sequence: u64,
    pub(crate) next_heartbeat: u64,
    /// Input is held until this time, milliseconds. `None`: input is accepted.
    pub(crate) holding_until: Option<u64>,
    pub(crate) forced: bool,
    /// Number of held keystrokes.
    pub(crate) held: u32,
    pub(crate) committed: bool,
    /// Accepted keystrokes that are not saved yet.
    pub(crate) unsaved: u32,
    /// Resources set by a resize. `None`: as at the start.
    pub(crate) resources: Option<Resources>,
}

/// One stream between an agent and the control plane.
#[derive(Debug)]
pub(crate) struct AgentStream {
    pub(crate) connection: u64,
    /// No message passes until this time, milliseconds.
    pub(crate) blocked_until: u64,
    pub(crate) up: VecDeque<AgentMessage>,
    pub(crate) down: VecDeque<ControlMessage>,
}

#[derive(Debug, Clone)]
pub(crate) enum AgentMessage {
    Hello,
    Heartbeat {
        sequence: u64,
        used: Used,
    },
    /// Answer to an ordered action; `Err` if the agent declined.
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
            latest_content: 0,
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

    /// Whether a process of the user may write to the storage.
    pub(crate) fn serves(&self) -> bool {
        self.orphans || self.agents.values().any(|agent| !agent.maintenance)
    }

    pub(crate) fn runs(&self) -> bool {
        self.orphans || !self.agents.is_empty()
    }

    /// Ends an agent. The backend reports it later.
    pub(crate) fn end(&mut self, epoch: Epoch) {
        if self.agents.remove(&epoch).is_some() {
            self.unreported_ends.push_back(epoch);
        }
    }
}
