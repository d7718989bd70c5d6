//! What everybody but the driver sees: an immutable picture of all workspaces, replaced whole on each change.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    path::PathBuf,
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use podling_core::{
    archive::Archive,
    id::{Name, Owner, WorkspaceId},
    time::Timestamp,
    workspace::{AgentConnection, Resources, Spec, State},
};
use podling_proto::agent::v1::ActivityState;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{backend::InstanceId, progress::Progress, store::LogEntry};

/// How to follow the picture. Subscribe before the first read.
pub type Snapshots = watch::Receiver<Arc<Snapshot>>;

/// The states with their words, in the order of a workspace's life.
pub const STATES: &[(State, &str)] = &[
    (State::Queued, "queued"),
    (State::Starting, "starting"),
    (State::Awake, "awake"),
    (State::FallingAsleep, "falling-asleep"),
    (State::Asleep, "asleep"),
    (State::Archiving, "archiving"),
    (State::Archived, "archived"),
    (State::Deleting, "deleting"),
    (State::Failed, "failed"),
];

/// All workspaces at one moment.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Grows with every picture.
    pub generation: u64,
    /// By id.
    pub workspaces: BTreeMap<WorkspaceId, Arc<WorkspaceView>>,
    /// How long control planes have watched, over all their lives.
    pub witnessed: Duration,
    /// The control plane is going down: how far it has come.
    pub down: Option<Down>,
}

/// How many workspaces have yet to come to rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Down {
    /// Those whose processes have not all ended.
    pub remaining: usize,
    /// All.
    pub total: usize,
}

/// One workspace at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkspaceView {
    /// What is wanted.
    pub spec: Arc<Spec>,
    /// The state word.
    pub state: State,
    /// Why, for people.
    pub reason: String,
    /// Since when it is in this state.
    pub since: Timestamp,
    /// Whether heartbeats arrive.
    pub connection: AgentConnection,
    /// Of the last heartbeat.
    pub activity: Option<Arc<ActivityState>>,
    /// The agent that serves it: there while it is awake, and while it starts once it has said hello.
    pub agent: Option<Arc<AgentView>>,
    /// When the driver looks again, and why, if it waits for something.
    pub next: Option<(Timestamp, String)>,
    /// Starts since it was last healthy.
    pub restarts: u32,
    /// What it has of its owner's share; what it wants is in `spec`.
    pub given: Option<Resources>,
    /// What its agent has of that, where the backend knows.
    pub allotted: Option<Resources>,
    /// Its place in the line of those who wait for room, or for more than they have: 1 is next.
    pub place: Option<usize>,
    /// How far its archiving, or its way back from the archive, is.
    pub progress: Option<Progress>,
    /// Its archives, oldest first.
    pub archives: Vec<Archive>,
    /// What was decided of it lately, oldest first.
    pub log: Arc<VecDeque<LogEntry>>,
    /// SHA-256 of the secret its agent proves itself with.
    pub credential: Option<Fingerprint>,
    /// Grows with every change of this workspace.
    pub version: u64,
}

/// An agent as the gateway needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentView {
    /// One run of it.
    pub boot_id: String,
    /// The epoch of its byte logs.
    pub epoch: u64,
    /// Its version.
    pub version: String,
    /// What it can do.
    pub capabilities: Vec<String>,
    /// Where it listens.
    pub address: AgentAddress,
    /// The certificate it must show.
    pub fingerprint: Fingerprint,
    /// Which of all agents that ever were it is.
    pub instance: InstanceId,
    /// The image it runs from, by its digest, where it has one.
    pub image: Option<String>,
}

/// Where an agent listens. Always TLS.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgentAddress {
    /// A unix socket (the path may be longer than `sun_path` holds: connect through the folder's descriptor).
    Unix(PathBuf),
    /// Host and port.
    Tcp(String),
}

/// SHA-256 of a certificate in DER.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint(pub [u8; 32]);

/// Not 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint is 64 hexadecimal digits")]
pub struct BadFingerprint;

impl Snapshot {
    /// The workspace with this id.
    pub fn get(&self, id: &WorkspaceId) -> Option<&Arc<WorkspaceView>> {
        self.workspaces.get(id)
    }

    /// The owner's workspace of this name. One that is being deleted still holds its name, until only its archives are left.
    pub fn by_name(&self, owner: &Owner, name: &Name) -> Option<&Arc<WorkspaceView>> {
        let mut named = self.workspaces.values().filter(|w| w.spec.owner == *owner && w.spec.name == *name);
        named.find(|workspace| !workspace.is_gone())
    }
}

impl WorkspaceView {
    /// It was deleted, and only its archives are left.
    pub fn is_gone(&self) -> bool {
        self.spec.wanted.is_gone() && self.state == State::Archived
    }
}

impl AgentView {
    /// Whether it said that it can do this.
    pub fn can(&self, capability: &str) -> bool {
        self.capabilities.iter().any(|known| known == capability)
    }
}

// === impl Fingerprint ===

impl Fingerprint {
    /// Of this certificate (DER).
    pub fn of(certificate: &[u8]) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, certificate).as_ref());
        Self(bytes)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = BadFingerprint;

    fn from_str(text: &str) -> Result<Self, BadFingerprint> {
        if text.len() != 64 || !text.is_ascii() {
            return Err(BadFingerprint);
        }
        let mut bytes = [0; 32];
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = str::from_utf8(digits).map_err(|_| BadFingerprint)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| BadFingerprint)?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = BadFingerprint;

    fn try_from(text: String) -> Result<Self, BadFingerprint> {
        text.parse()
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.to_string()
    }
}
