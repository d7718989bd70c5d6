//! A control plane without its gateway: driver, store, local backend and the agents' listener, with
//! real agents.

use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use podling_control::{
    agents::AgentsService,
    archiver::AgentArchiver,
    backend::local::{LocalBackend, LocalConfig, LocalReviewer, control_socket},
    backup_store::BackupStore,
    driver::{Driver, DriverHandle, NewWorkspace},
    identity::{ControlIdentity, MissingSecrets},
    leader_election::Leadership,
    open_files::OpenFiles,
    snapshot::WorkspaceView,
    store::RedbStore,
};
use podling_core::{id::WorkspaceId, policy::Policy, quota::Quotas, workspace::Resources};
use podling_testkit::{
    DialAddress,
    http::serve_tls,
    net::TestServer,
    processes::{self, pids, read_proc},
};
use prometheus_client::metrics::counter::Counter;
use tokio::{task::JoinSet, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// A temporary data directory. Dropping it kills every process that was started in it.
pub(crate) struct DataDir {
    dir: tempfile::TempDir,
}

/// A running control plane. Dropping it aborts all tasks, as `kill -9` does.
pub(crate) struct LocalControlPlane {
    pub(crate) handle: DriverHandle,
    pub(crate) shutdown: CancellationToken,
    _tasks: JoinSet<()>,
    _agents: TestServer,
}

impl DataDir {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn of(&self, id: &WorkspaceId) -> PathBuf {
        self.path().join("workspaces").join(id.as_str())
    }

    pub(crate) fn agent_pid(&self, id: &WorkspaceId) -> u32 {
        let record = fs::read(self.of(id).join("run/agent.json")).unwrap();
        let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
        record["pid"].as_u64().unwrap() as u32
    }

    /// Creates an executable shell script and returns its command.
    pub(crate) fn script(&self, name: &str, text: &str) -> Vec<String> {
        let path = self.path().join(name);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o700).open(&path).unwrap();
        write!(file, "#!/bin/sh\n{text}\n").unwrap();
        drop(file);
        vec![path.display().to_string()]
    }

    /// Returns the command that [`DataDir::agent`] has created before, for a second control plane.
    pub(crate) fn agent_again(&self) -> Vec<String> {
        vec![self.path().join("agent").display().to_string()]
    }

    /// Creates the command of a real agent, which is this test program running `run_as_agent`.
    pub(crate) fn agent(&self) -> Vec<String> {
        let own = std::env::current_exe().unwrap();
        let text = format!("AGENT_ARGS=\"agent $*\" exec {} --exact run_as_agent --nocapture", own.display());
        self.script("agent", &text)
    }
}

impl Drop for DataDir {
    fn drop(&mut self) {
        processes::kill_all(&processes::in_dir(self.path()));
    }
}

impl LocalControlPlane {
    pub(crate) async fn start(data: &DataDir, agent_command: Vec<String>) -> Self {
        let identity = Arc::new(ControlIdentity::open(data.path(), MissingSecrets::Create).unwrap());
        let store = timeout(DEADLINE, async {
            loop {
                match RedbStore::open(&data.path().join("control/store.redb")) {
                    Ok(store) => return store,
                    // The previous control plane has not closed the file yet.
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        });
        let config = LocalConfig {
            data: data.path().to_owned(),
            agent_command,
            control_ca: identity.ca_file().to_owned(),
            agent_files: OpenFiles::limit(),
        };
        let backend = LocalBackend::open(config).unwrap();
        let shutdown = CancellationToken::new();
        let url = format!("file://{}/backups", data.path().display());
        let backups = BackupStore::open(&url, data.path().to_owned()).unwrap();
        let archiver = Arc::new(AgentArchiver::new(backups, identity.clone(), Leadership::permanent()));
        let store = Arc::new(store.await.unwrap());
        let driver = Driver::open(store, backend, archiver, Quotas::default(), shutdown.clone());
        let (driver, handle) = driver.await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { driver.run().await.unwrap() });
        let agents = serve_agents(data, &identity, handle.clone()).await;
        Self { handle, shutdown, _tasks: tasks, _agents: agents }
    }

    pub(crate) async fn create(&self, name: &str) -> WorkspaceId {
        let new = NewWorkspace {
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
        };
        self.handle.create(new).await.unwrap().0.spec.id.clone()
    }

    pub(crate) async fn wait(
        &self,
        id: &WorkspaceId,
        what: impl Fn(&WorkspaceView) -> bool,
    ) -> Arc<WorkspaceView> {
        let mut snapshots = self.handle.snapshots();
        let seen = timeout(DEADLINE, snapshots.wait_for(|s| s.get(id).is_some_and(|view| what(view)))).await;
        match seen {
            Ok(Ok(snapshot)) => snapshot.get(id).unwrap().clone(),
            _ => panic!(
                "the workspace did not reach the expected state: {:#?}",
                self.handle.snapshots().borrow().get(id)
            ),
        }
    }

    pub(crate) async fn gone(&self, id: &WorkspaceId) {
        let mut snapshots = self.handle.snapshots();
        let seen = timeout(DEADLINE, snapshots.wait_for(|s| s.get(id).is_none())).await;
        assert!(seen.is_ok(), "the workspace still exists: {:#?}", self.handle.snapshots().borrow().get(id));
    }
}

/// Accepts agents at the control socket in the data directory.
async fn serve_agents(data: &DataDir, identity: &ControlIdentity, handle: DriverHandle) -> TestServer {
    let path = control_socket(data.path());
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let reviewer = LocalReviewer::new(handle.snapshots()).unwrap();
    let service = AgentsService::new(
        handle,
        reviewer,
        identity.token_keys(),
        TaskTracker::new(),
        CancellationToken::new(),
        Counter::default(),
    );
    let router = service.into_services().into_router();
    serve_tls(&DialAddress::Unix(path), identity.agents_tls(), router).await
}

/// Returns the ids of the processes that carry the workspace's marker variable.
pub(crate) fn marked_processes(id: &WorkspaceId) -> Vec<u32> {
    let mark = format!("PODLING_WORKSPACE_ID={id} ");
    pids().filter(|pid| read_proc(*pid, "environ").contains(&mark)).collect()
}
