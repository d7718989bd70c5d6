//! What is really there of one workspace: its storage, what runs, its archives; and what the laws compare it with.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use podling_core::{
    observed::Used,
    status::Urgency,
    workspace::{Epoch, Resources},
};

/// The storage. Its content is a number that every write changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Storage {
    None,
    Whole(u64),
    /// Half removed or half restored.
    Half,
}

#[derive(Debug)]
pub(crate) struct Real {
    pub(crate) storage: Storage,
    /// What its user wrote last, wherever it is now; 0: nothing yet.
    pub(crate) latest: u64,
    /// Content of the archives in the backup store, by generation.
    pub(crate) objects: BTreeMap<u64, u64>,
    pub(crate) agents: BTreeMap<Epoch, Agent>,
    /// Programs that an agent left behind.
    pub(crate) orphans: bool,
    pub(crate) started: BTreeSet<Epoch>,
    /// What is in the storage came from an archive, and no user's agent has run since.
    pub(crate) only_restored: bool,
    /// Ends of agents that the backend has not told yet.
    pub(crate) ends: VecDeque<Epoch>,
    /// Somebody is at the keyboard.
    pub(crate) present: bool,
    pub(crate) ghost: Ghost,
}

/// What nobody in the simulation acts upon: kept for the laws alone. Times are of `World::watched`.
#[derive(Debug, Default)]
pub(crate) struct Ghost {
    /// Somebody asked for it, was told yes, and it has not been awake since.
    pub(crate) requested_at: bool,
    pub(crate) discarded: bool,
    /// Somebody asked for its sleep, unless it is used, and that has not been tried yet.
    pub(crate) put_away: bool,
    /// What was watched when it fell asleep, by what its status says of that time.
    pub(crate) rests: BTreeMap<Duration, Duration>,
    pub(crate) woke_at: Duration,
    /// And when it joined the line, by what its status says of that.
    pub(crate) joins: BTreeMap<Duration, Duration>,
    /// When each archive was made.
    pub(crate) made: BTreeMap<u64, Duration>,
}

#[derive(Debug)]
pub(crate) struct Agent {
    /// It only sees to the storage.
    pub(crate) maintenance: bool,
    pub(crate) claimed: bool,
    /// Hangs or is suspended until then.
    pub(crate) stuck: u64,
    pub(crate) link: Option<Link>,
    /// Its policy, from the claim.
    pub(crate) idle_timeout: Duration,
    /// Counted over beats that were acknowledged.
    pub(crate) idle: Duration,
    /// When it was used last, and until when programs work.
    pub(crate) used: u64,
    pub(crate) busy: u64,
    /// The last beats that are not acknowledged (number, when), and when the last one was sent that is.
    pub(crate) beats: VecDeque<(u64, u64)>,
    pub(crate) acknowledged: Option<u64>,
    pub(crate) sequence: u64,
    pub(crate) next_beat: u64,
    /// Shut until then.
    pub(crate) shut: Option<u64>,
    pub(crate) force: bool,
    /// Intents that wait at the door.
    pub(crate) held: u32,
    pub(crate) committed: bool,
    /// Keystrokes that were accepted and are on no disk yet.
    pub(crate) unsaved: u32,
    /// What it was given since it was started; `None`: as it was started.
    pub(crate) has: Option<Resources>,
}

/// One stream between an agent and the control plane.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) connection: u64,
    /// Nothing passes until then; whoever notices gives the stream up.
    pub(crate) parted: u64,
    pub(crate) up: VecDeque<Up>,
    pub(crate) down: VecDeque<Down>,
}

#[derive(Debug, Clone)]
pub(crate) enum Up {
    Hello,
    Beat {
        sequence: u64,
        used: Used,
    },
    /// `Err`: declined.
    Result {
        order: u64,
        result: Result<(), &'static str>,
    },
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Down {
    Claim { idle_timeout: Duration },
    Ack { sequence: u64 },
    Prepare { order: u64, urgency: Urgency },
    Commit { order: u64 },
    Cancel { order: u64 },
    Dismiss,
}

impl Real {
    pub(crate) fn new() -> Self {
        Self {
            storage: Storage::None,
            latest: 0,
            objects: BTreeMap::new(),
            agents: BTreeMap::new(),
            orphans: false,
            only_restored: false,
            started: BTreeSet::new(),
            ends: VecDeque::new(),
            present: true,
            ghost: Ghost::default(),
        }
    }

    /// Something may write to its storage as its user does.
    pub(crate) fn serves(&self) -> bool {
        self.orphans || self.agents.values().any(|agent| !agent.maintenance)
    }

    pub(crate) fn runs(&self) -> bool {
        self.orphans || !self.agents.is_empty()
    }

    /// An agent's end, which the backend tells some time.
    pub(crate) fn end(&mut self, epoch: Epoch) {
        if self.agents.remove(&epoch).is_some() {
            self.ends.push_back(epoch);
        }
    }
}
