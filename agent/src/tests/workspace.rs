//! A claimed workspace in a temporary directory, for the unit tests of this crate and for the tests in
//! `agent/tests`. It starts nothing.

use std::sync::Arc;

use podling_agent::{
    admission::AdmissionGate,
    child::{Children, OrphanPolicy},
    claim::{AgentPolicy, Claim},
    spawn::Launcher,
};
use tempfile::TempDir;
use tokio::{sync::watch, task::JoinSet};

/// Epoch of the claim.
pub(crate) const EPOCH: u64 = 7;

/// The parts of an agent that terminals and processes use, with a temporary home directory. Dropping
/// it removes the directory.
pub(crate) struct ClaimedWorkspace {
    pub(crate) home: TempDir,
    pub(crate) children: Children,
    pub(crate) gate: Arc<AdmissionGate>,
    claims: watch::Sender<Option<Arc<Claim>>>,
    _reaper: JoinSet<()>,
}

/// Returns a claim with this policy, and with an environment for a plain shell.
pub(crate) fn claim(policy: AgentPolicy) -> Claim {
    let env = [("PS1", "$ "), ("ENV", ""), ("LANG", "C.UTF-8"), ("FROM_CLAIM", "yes")];
    Claim {
        workspace_id: "abcdefghijkl".into(),
        workspace_name: "test".into(),
        epoch: EPOCH,
        policy,
        env: env.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        command: Vec::new(),
        maintenance: false,
        token_keys: Default::default(),
    }
}

impl ClaimedWorkspace {
    /// Creates a workspace with this claim, or without one, and reaps its processes.
    pub(crate) fn new(claim: Option<Claim>) -> Self {
        let children = Children::new(OrphanPolicy::Leave);
        let mut reaper = JoinSet::new();
        let reaping = children.clone();
        reaper.spawn(async move { reaping.reap().await.expect("signals") });
        Self {
            home: tempfile::tempdir().expect("a directory"),
            children,
            gate: Arc::new(AdmissionGate::new()),
            claims: watch::Sender::new(claim.map(Arc::new)),
            _reaper: reaper,
        }
    }

    pub(crate) fn launcher(&self) -> Launcher {
        Launcher::new(self.home.path(), self.claims.subscribe())
    }
}
