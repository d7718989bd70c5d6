//! A backend that runs nothing. It records calls, fails on demand, and lists the agents that it was
//! told to start. It outlives the driver, as processes do. Its credentials name the exact instance,
//! as those of pods do.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
};

use futures_util::Stream;
use podling_control::{
    backend::{
        AgentReviewer, Backend, BackendError, Instance, InstanceId, Observation, ReportedProcess, ResizePlan,
        ReviewedCredential, StartPlan,
    },
    snapshot::AgentAddress,
};
use podling_core::{id::WorkspaceId, reason::Wait};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::UnboundedReceiverStream;

#[derive(Clone, Default)]
pub(crate) struct FakeBackend(Arc<SharedBackend>);

struct SharedBackend {
    state: Mutex<BackendState>,
    /// Calls block while this is true.
    held: watch::Sender<bool>,
}

#[derive(Default)]
pub(crate) struct BackendState {
    pub(crate) running: BTreeMap<WorkspaceId, Instance>,
    pub(crate) secrets: BTreeMap<WorkspaceId, String>,
    pub(crate) calls: Vec<String>,
    /// Workspaces whose storage exists.
    pub(crate) storage: BTreeSet<WorkspaceId>,
    pub(crate) fail_starts: bool,
    pub(crate) fail_stops: bool,
    pub(crate) fail_reviews: bool,
    observers: Vec<mpsc::UnboundedSender<Observation>>,
}

impl Default for SharedBackend {
    fn default() -> Self {
        Self { state: Mutex::default(), held: watch::Sender::new(false) }
    }
}

/// Returns the instance id of the agent of this epoch.
pub(crate) fn instance(epoch: u64) -> InstanceId {
    InstanceId(format!("the agent of epoch {epoch}"))
}

/// Returns the credential that the agent of this epoch presents.
pub(crate) fn credential(id: &WorkspaceId, epoch: u64, secret: &str) -> String {
    format!("{id}/{epoch}/{secret}")
}

impl FakeBackend {
    pub(crate) fn state(&self) -> MutexGuard<'_, BackendState> {
        self.0.state.lock().unwrap()
    }

    pub(crate) fn hold(&self, held: bool) {
        self.0.held.send_replace(held);
    }

    pub(crate) fn kill(&self, id: &WorkspaceId) {
        let mut state = self.state();
        let instance = state.running.remove(id).expect("it runs");
        let ended = Observation::Ended { instance, detail: "killed by SIGKILL".into() };
        state.observers.retain(|observer| observer.send(ended.clone()).is_ok());
    }

    /// Reports what a start waits for. `None` ends the wait.
    pub(crate) fn report_wait(&self, workspace: &WorkspaceId, epoch: u64, waits: Option<Wait>) {
        self.report(&Observation::Waits { workspace: workspace.clone(), epoch, waits });
    }

    pub(crate) fn report(&self, observation: &Observation) {
        self.state().observers.retain(|observer| observer.send(observation.clone()).is_ok());
    }

    async fn call(&self, what: String) {
        self.state().calls.push(what);
        let mut held = self.0.held.subscribe();
        let _open = held.wait_for(|held| !held).await;
    }
}

impl Backend for FakeBackend {
    async fn ensure(&self, plan: StartPlan) -> Result<Instance, BackendError> {
        let called = self.call(format!("start {}", plan.epoch));
        if plan.cancellation.run_until_cancelled(called).await.is_none() {
            return Err(BackendError::new("start it", "the start was cancelled"));
        }
        let mut state = self.state();
        if state.fail_starts {
            return Err(BackendError::new("start it", "no such program"));
        }
        if plan.expects_files && !state.storage.contains(&plan.workspace) {
            return Err(BackendError::new("start it", "the storage with its files does not exist"));
        }
        state.storage.insert(plan.workspace.clone());
        assert!(
            !state.running.contains_key(&plan.workspace),
            "at most one agent of a workspace runs at a time"
        );
        let instance = Instance {
            workspace: plan.workspace.clone(),
            epoch: plan.epoch,
            id: instance(plan.epoch),
            boot_id: None,
            address: AgentAddress::Tcp("agent.test:1".into()),
            resources: Some(plan.resources),
            image: None,
        };
        state.running.insert(plan.workspace.clone(), instance.clone());
        state.secrets.insert(plan.workspace, plan.secret);
        Ok(instance)
    }

    async fn resize(&self, resize: ResizePlan) -> Result<(), BackendError> {
        self.call("resize".into()).await;
        assert!(self.state().running.contains_key(&resize.workspace), "only a running agent is resized");
        Ok(())
    }

    async fn stop(&self, workspace: WorkspaceId, _last: u64) -> Result<(), BackendError> {
        self.call("stop".into()).await;
        let mut state = self.state();
        if state.fail_stops {
            return Err(BackendError::new("stop it", "the process does not end"));
        }
        state.running.remove(&workspace);
        Ok(())
    }

    async fn remove(&self, workspace: WorkspaceId) -> Result<(), BackendError> {
        self.call("remove".into()).await;
        let mut state = self.state();
        assert!(!state.running.contains_key(&workspace), "storage is removed only when no agent runs");
        state.storage.remove(&workspace);
        Ok(())
    }

    fn observe(&self) -> impl Stream<Item = Observation> + Send + 'static {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut state = self.state();
        let _listening = sender.send(Observation::Listed {
            running: state.running.values().cloned().collect(),
            unknown: [].into(),
        });
        state.observers.push(sender);
        UnboundedReceiverStream::new(receiver)
    }
}

impl AgentReviewer for FakeBackend {
    type CredentialProof = InstanceId;

    async fn review(&self, shown: &str) -> Result<Option<ReviewedCredential<InstanceId>>, BackendError> {
        let state = self.state();
        if state.fail_reviews {
            return Err(BackendError::new("review a credential", "no answer"));
        }
        let epoch = shown.split('/').nth(1).and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
        let holder = state.secrets.iter().find(|(id, secret)| credential(id, epoch, secret) == shown);
        Ok(holder.map(|(id, _)| ReviewedCredential { workspace: id.clone(), proof: instance(epoch) }))
    }

    fn instance(&self, proof: InstanceId, _process: ReportedProcess) -> InstanceId {
        proof
    }
}
