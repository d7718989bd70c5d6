//! A control plane without APIs and listeners. The tests send the messages of its agents.

use std::{path::Path, sync::Arc, time::Duration};

use podling_control::{
    activity::ReportedActivity,
    driver::{
        AgentDirective, AgentHello, ConnectionId, DirectiveAnswer, DirectiveId, Driver, DriverHandle,
        Heartbeat, NewWorkspace, SleepStep,
    },
    snapshot::{Fingerprint, WorkspaceView},
    store::{RedbStore, Store},
};
use podling_core::{
    id::WorkspaceId,
    observed::Failure,
    policy::Policy,
    quota::Quotas,
    status::Urgency,
    workspace::{Resources, State},
};
use podling_proto::agent::v1::ActivityLevel;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    fake_archiver::FakeArchiver,
    fake_backend::{self, FakeBackend},
};

/// Upper bound of each wait. The awaited events take milliseconds.
pub(crate) const DEADLINE: Duration = Duration::from_secs(15);

/// A control plane. Dropping it aborts all tasks, as `kill -9` does.
pub(crate) struct TestControlPlane {
    pub(crate) handle: DriverHandle,
    pub(crate) shutdown: CancellationToken,
    pub(crate) tasks: JoinSet<()>,
}

impl TestControlPlane {
    /// Starts a control plane in a temporary directory, with a backend of its own.
    pub(crate) async fn fresh() -> (tempfile::TempDir, FakeBackend, Self) {
        let (dir, backend) = (tempfile::tempdir().expect("a directory"), FakeBackend::default());
        let control = Self::start(dir.path(), &backend).await;
        (dir, backend, control)
    }

    pub(crate) async fn start(dir: &Path, backend: &FakeBackend) -> Self {
        Self::with_archiver(dir, backend, &FakeArchiver::default(), Quotas::default()).await
    }

    pub(crate) async fn with_archiver(
        dir: &Path,
        backend: &FakeBackend,
        archiver: &FakeArchiver,
        quotas: Quotas,
    ) -> Self {
        // The previous control plane may still hold the file.
        let store = timeout(DEADLINE, async {
            loop {
                match RedbStore::open(&dir.join("store.redb")) {
                    Ok(store) => return store,
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        });
        Self::with_store(Arc::new(store.await.expect("the store")), backend, archiver, quotas).await
    }

    pub(crate) async fn with_store(
        store: Arc<dyn Store>,
        backend: &FakeBackend,
        archiver: &FakeArchiver,
        quotas: Quotas,
    ) -> Self {
        let shutdown = CancellationToken::new();
        let (driver, handle) =
            Driver::open(store, backend.clone(), Arc::new(archiver.clone()), quotas, shutdown.clone())
                .await
                .expect("a driver");
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { driver.run().await.expect("the driver") });
        Self { handle, shutdown, tasks }
    }

    /// Creates a workspace and returns its id.
    pub(crate) async fn create_with(&self, new: NewWorkspace) -> WorkspaceId {
        self.handle.create(new).await.expect("created").0.spec.id.clone()
    }

    pub(crate) async fn create(&self, name: &str) -> Arc<WorkspaceView> {
        self.handle.create(new_workspace(name)).await.expect("created").0
    }

    pub(crate) async fn wait(
        &self,
        id: &WorkspaceId,
        what: impl Fn(&WorkspaceView) -> bool,
    ) -> Arc<WorkspaceView> {
        let mut snapshots = self.handle.snapshots();
        let seen =
            timeout(DEADLINE, snapshots.wait_for(|snapshot| snapshot.get(id).is_some_and(|view| what(view))))
                .await;
        match seen {
            Ok(Ok(snapshot)) => snapshot.get(id).expect("just seen").clone(),
            _ => panic!(
                "the workspace did not reach the expected view: {:#?}",
                self.handle.snapshots().borrow().get(id)
            ),
        }
    }

    pub(crate) async fn wait_until_gone(&self, id: &WorkspaceId) {
        let mut snapshots = self.handle.snapshots();
        timeout(DEADLINE, snapshots.wait_for(|s| s.get(id).is_none())).await.expect("gone").expect("driver");
    }

    /// Connects an agent of this epoch, which says hello. Returns the messages to the agent.
    pub(crate) async fn dial(
        &self,
        id: &WorkspaceId,
        epoch: u64,
        boot_id: &str,
        connection: u64,
    ) -> mpsc::Receiver<AgentDirective> {
        let (directives, messages) = mpsc::channel(8);
        let hello = AgentHello {
            workspace: id.clone(),
            connection: ConnectionId(connection),
            instance: fake_backend::instance(epoch),
            boot_id: boot_id.into(),
            version: "0.1.0".into(),
            capabilities: vec!["terminals".into(), "sleep".into()],
            fingerprint: Fingerprint([7; 32]),
            directives,
        };
        self.handle.hello(hello).await.expect("the driver");
        messages
    }

    /// Connects an agent of this epoch, waits for its claim, and confirms the claim by a heartbeat
    /// without an activity level.
    pub(crate) async fn serve(
        &self,
        id: &WorkspaceId,
        epoch: u64,
        connection: u64,
    ) -> mpsc::Receiver<AgentDirective> {
        let mut agent = self.dial(id, epoch, &format!("boot-{epoch}"), connection).await;
        expect_claim(&mut agent, epoch).await;
        assert!(self.heartbeat(id, connection, ActivityLevel::Unspecified).await);
        agent
    }

    pub(crate) async fn heartbeat(&self, id: &WorkspaceId, connection: u64, level: ActivityLevel) -> bool {
        self.heartbeat_with_idle(id, connection, level, Duration::ZERO).await
    }

    /// Sends a heartbeat with this counted idle time. Returns whether it was accepted.
    pub(crate) async fn heartbeat_with_idle(
        &self,
        id: &WorkspaceId,
        connection: u64,
        level: ActivityLevel,
        counted: Duration,
    ) -> bool {
        let activity = ReportedActivity { level, counted_idle: counted, ..ReportedActivity::default() };
        self.send_activity(id, connection, activity).await
    }

    /// Sends a heartbeat with this activity. Returns whether it was accepted.
    pub(crate) async fn send_activity(
        &self,
        id: &WorkspaceId,
        connection: u64,
        activity: ReportedActivity,
    ) -> bool {
        let (accepted, was_accepted) = oneshot::channel();
        let heartbeat = Heartbeat {
            workspace: id.clone(),
            connection: ConnectionId(connection),
            activity: Arc::new(activity),
            accepted,
        };
        self.handle.heartbeat(heartbeat).await.expect("the driver");
        was_accepted.await.is_ok()
    }

    /// Sends the answer of the agent to a sleep directive.
    pub(crate) async fn answer_directive(
        &self,
        id: &WorkspaceId,
        connection: u64,
        directive: DirectiveId,
        result: Result<(), Failure>,
    ) {
        let (workspace, connection) = (id.clone(), ConnectionId(connection));
        let answer = DirectiveAnswer { workspace, connection, directive, result, activity: None };
        self.handle.directive_answered(answer).await.expect("the driver");
    }

    /// Forces the workspace to sleep. Its agent on connection 1 agrees to every step.
    pub(crate) async fn put_to_sleep(&self, id: &WorkspaceId, agent: &mut mpsc::Receiver<AgentDirective>) {
        self.handle.sleep(id.clone(), true).await.expect("sleep accepted");
        for expected in [SleepStep::Prepare(Urgency::Forced), SleepStep::Commit] {
            let (directive, step) = next_sleep_step(agent).await;
            assert_eq!(step, expected);
            self.answer_directive(id, 1, directive, Ok(())).await;
        }
        self.wait(id, |view| view.state == State::Asleep).await;
    }

    /// Forces the workspace to sleep. Does not wait for the state `Asleep`, because the workspace
    /// may leave that state at once.
    pub(crate) async fn complete_sleep(&self, id: &WorkspaceId, agent: &mut mpsc::Receiver<AgentDirective>) {
        self.handle.sleep(id.clone(), true).await.expect("sleep accepted");
        for _ in 0..2 {
            let (directive, _) = next_sleep_step(agent).await;
            self.answer_directive(id, 1, directive, Ok(())).await;
        }
    }

    /// Creates a workspace and serves it with an agent on connection 1.
    pub(crate) async fn create_awake(&self, name: &str) -> (WorkspaceId, mpsc::Receiver<AgentDirective>) {
        let id = self.create_with(new_workspace(name)).await;
        let agent = self.serve(&id, 1, 1).await;
        self.wait(&id, |view| view.state == State::Awake).await;
        (id, agent)
    }
}

pub(crate) fn new_workspace(name: &str) -> NewWorkspace {
    NewWorkspace {
        owner: "me".parse().unwrap(),
        name: name.parse().unwrap(),
        template: "shell".into(),
        command: vec![],
        env: Default::default(),
        policy: Policy::default(),
        resources: Resources::default(),
        storage_bytes: None,
        source: None,
        request_id: String::new(),
        reconnect: false,
    }
}

pub(crate) async fn expect_claim(agent: &mut mpsc::Receiver<AgentDirective>, epoch: u64) {
    loop {
        match timeout(DEADLINE, agent.recv()).await.expect("an answer") {
            Some(AgentDirective::Claim(claim)) => return assert_eq!(claim.epoch, epoch),
            Some(AgentDirective::Wait) => {}
            other => panic!("no claim: {other:?}"),
        }
    }
}

/// Receives the next sleep directive. Skips warnings.
pub(crate) async fn next_sleep_step(agent: &mut mpsc::Receiver<AgentDirective>) -> (DirectiveId, SleepStep) {
    loop {
        match timeout(DEADLINE, agent.recv()).await.expect("a step") {
            Some(AgentDirective::Sleep(directive, step, _)) => return (directive, step),
            Some(AgentDirective::Warn(_)) => {}
            other => panic!("no step to sleep: {other:?}"),
        }
    }
}

pub(crate) async fn expect_dismissal(agent: &mut mpsc::Receiver<AgentDirective>) {
    loop {
        match timeout(DEADLINE, agent.recv()).await.expect("an answer") {
            Some(AgentDirective::Dismiss(_)) => break,
            Some(AgentDirective::Wait | AgentDirective::Drain { .. }) => {}
            other => panic!("no dismissal: {other:?}"),
        }
    }
    assert!(agent.recv().await.is_none(), "the stream ends after the dismissal");
}

/// Waits until the backend runs the agent of this epoch. Only then can the agent dial.
pub(crate) async fn wait_until_running(backend: &FakeBackend, id: &WorkspaceId, epoch: u64) {
    let running = || backend.state().running.get(id).is_some_and(|instance| instance.epoch == epoch);
    let wait = async {
        while !running() {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, wait).await.expect("the agent is started");
}
