//! Observed: what the driver knows of the world at this moment. Never stored: after a restart it is observed anew.

mod fold;

use std::{collections::BTreeSet, time::Duration};

use crate::{
    archive::Archive,
    decide::Action,
    status::Waits,
    time::Timestamp,
    workspace::{Epoch, Resources},
};

/// What is known of one workspace's outside world.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// What runs.
    pub processes: Processes,
    /// What the start or the resize under way waits for, as the backend sees it.
    pub waits: Option<Waits>,
    /// What an agent has, as the backend sees it.
    pub allotted: Option<(Epoch, Resources)>,
    /// The last agent that ended, or never came to life.
    pub ended: Option<Ended>,
    /// The agent that is claimed and whose heartbeats arrive.
    pub connected: Option<Epoch>,
    /// How long the living agent of the present epoch has not been heard of, as far as the driver witnessed it: while the driver
    /// or the machine slept nothing is added.
    pub silence: Duration,
    /// Whether it is used, as the connected agent said last.
    pub used: Used,
    /// The agent that has told of use last.
    pub used_by: Option<Epoch>,
    /// Why it shall sleep now, unless it is used. Said once: whoever uses it afterwards keeps it awake as ever.
    pub asked: Option<&'static str>,
    /// Whether its agent lets new things begin.
    pub door: Door,
    /// The agent that has ended and saved everything.
    pub ready: Option<Epoch>,
    /// The archive that was proven last.
    pub archived: Option<Box<Archive>>,
    /// The agent that has filled the storage from an archive.
    pub restored: Option<Epoch>,
    /// Archives (by generation) that are confirmed gone.
    pub expired: BTreeSet<u64>,
    /// The last order went wrong (a start that did is `ended`).
    pub trouble: Option<Trouble>,
    /// The storage is confirmed gone.
    pub removed: bool,
    /// Whether there is room for it to be awake, or for what it wants beyond what it was given.
    pub room: bool,
    /// As many workspaces are being archived as may be: it waits.
    pub crowded: bool,
    /// The control plane is going down: nothing shall run.
    pub standby: bool,
    /// Time that control planes have watched, over all their lives: it grows by ticks alone, so that no clock that is set, and no
    /// night in which nothing watched, makes anything old.
    pub witnessed: Duration,
}

/// Whether a workspace is used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Used {
    /// Nobody has said.
    #[default]
    Unknown,
    /// It is.
    Yes,
    /// It is not, and so much idle time has been witnessed.
    No(Duration),
}

/// The door of the agent of the present epoch: shut while it is prepared to sleep.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Door {
    /// As far as anybody knows. Whatever was forgotten, the agent opens it by itself when its time is over.
    #[default]
    Open,
    /// It was asked to shut it, or to open it, and has not answered.
    Unsure(Epoch),
    /// It said so.
    Shut(Epoch),
}

/// The processes of a workspace. Two agents may live at once: a machine may be lost and come back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Processes {
    /// The backend has not said yet.
    #[default]
    Unseen,
    /// Confirmed: none is left.
    None,
    /// Agents of these epochs live. Empty: no agent, but what one left behind may run, or one is being started.
    Some(BTreeSet<Epoch>),
}

/// An agent's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Which start made it.
    pub epoch: Epoch,
    /// For people: "killed by SIGKILL", "no such program".
    pub how: String,
}

/// An order that failed and still stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Which.
    pub action: Action,
    /// How often in a row.
    pub failures: u32,
    /// The last time.
    pub at: Timestamp,
    /// How.
    pub failure: Failure,
}

/// How an action came back without success. For people in either case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The agent declined: it has not happened.
    Declined(String),
    /// Nobody knows how far it came.
    Failed(String),
}

/// What an action achieved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Achieved {
    /// What it says.
    Done,
    /// An archive was written and proven.
    Archived(Box<Archive>),
}

impl Processes {
    /// Whether this agent lives.
    pub fn lives(&self, epoch: Epoch) -> bool {
        matches!(self, Self::Some(agents) if agents.contains(&epoch))
    }
}

impl Door {
    /// Whose door is, or may be, shut.
    pub fn may_be_shut(self) -> Option<Epoch> {
        match self {
            Self::Open => None,
            Self::Unsure(epoch) | Self::Shut(epoch) => Some(epoch),
        }
    }
}

impl Failure {
    /// Its words.
    pub fn words(&self) -> &str {
        match self {
            Self::Declined(words) | Self::Failed(words) => words,
        }
    }
}
