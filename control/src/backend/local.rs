//! The backend `local`. All workspaces are processes of one user on this machine, so they are not
//! protected from each other.
//!
//! An agent runs in its own session, so that it outlives the control plane. A restarted control
//! plane finds the agent by `run/agent.json`, which holds the process id, its start time and the
//! machine's boot ID. A pidfd reports the end of an agent, whether the agent is a child process or
//! was adopted. The processes of a workspace are found without any file; see `sweep`.
//!
//! An agent authenticates with the credential `<workspace id>.<secret>`, with a new secret for each
//! start. The instance follows from the process that the agent reports. This report is not
//! verified, because every process that could forge it belongs to the same user as the control
//! plane.

mod launch;
mod process;
mod remove;
mod sweep;

use std::{
    fmt::Display,
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{Stream, StreamExt, stream};
use podling_core::{id::WorkspaceId, workspace::Epoch};
use tokio::{
    sync::{Semaphore, SemaphorePermit, mpsc},
    task::spawn_blocking,
    time::sleep,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use self::{
    process::{HostBoot, RunningAgent},
    sweep::{AgentScan, ScanResult},
};
use super::{
    AgentReviewer, Backend, BackendError, Instance, InstanceId, Observation, ReportedProcess, ResizePlan,
    ReviewedCredential, StartPlan,
};
use crate::{
    open_files::OpenFiles,
    snapshot::{AgentAddress, Fingerprint, SnapshotReceiver},
};

/// Capacity of the channel to the driver. Tasks that report the end of an agent wait while it is
/// full.
const OBSERVATIONS: usize = 256;
/// Concurrent starts, stops and removals. Further ones wait. The limit bounds the forks, scans of
/// /proc and removals of directories that run at the same time.
const MAX_CONCURRENT_OPERATIONS: usize = 32;
/// Pause before a scan is repeated because it failed or could not inspect every agent.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Size of an agent's log, in bytes, from which the next start of the agent rotates it. One older
/// log is retained.
const LOG_BYTES: u64 = 1024 * 1024;

/// Configuration of the local backend.
#[derive(Debug, Clone)]
pub struct LocalConfig {
    pub data: PathBuf,
    /// Program and first arguments of an agent.
    pub agent_command: Vec<String>,
    /// PEM file with the CA of the control plane's certificate.
    pub control_ca: PathBuf,
    /// Limit on open files that agents inherit.
    pub agent_files: OpenFiles,
}

/// Runs workspaces as processes of this machine.
#[derive(Debug)]
pub struct LocalBackend {
    runtime: LocalRuntime,
    observations: Mutex<Option<mpsc::Receiver<Observation>>>,
    /// Ends the watchers, but not the agents, when the backend is dropped.
    _watchers: DropGuard,
}

#[derive(Debug, Clone)]
struct LocalRuntime {
    config: LocalConfig,
    layout: DataLayout,
    host: HostBoot,
    observation_tx: mpsc::Sender<Observation>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    permits: Arc<Semaphore>,
}

impl LocalBackend {
    /// Opens the backend. Creates the data directory and its `workspaces` directory if they are
    /// missing.
    pub fn open(mut config: LocalConfig) -> Result<Self, BackendError> {
        // Agents have another working directory, so relative paths are made absolute for them.
        let absolute = |path: &Path| {
            std::path::absolute(path).map_err(|e| BackendError::new(format!("resolve {}", path.display()), e))
        };
        config.control_ca = absolute(&config.control_ca)?;
        if let Some(program) = config.agent_command.first_mut().filter(|program| program.contains('/')) {
            *program = absolute(Path::new(program))?.display().to_string();
        }
        let host = HostBoot::current()?;
        let layout = DataLayout::create(&config.data)
            .map_err(|e| BackendError::new(format!("create {}", config.data.display()), e))?;
        let (observation_tx, observations) = mpsc::channel(OBSERVATIONS);
        let shutdown = CancellationToken::new();
        let runtime = LocalRuntime {
            config,
            layout,
            host,
            observation_tx,
            tasks: TaskTracker::new(),
            shutdown: shutdown.clone(),
            permits: Arc::new(Semaphore::new(MAX_CONCURRENT_OPERATIONS)),
        };
        Ok(Self { runtime, observations: Mutex::new(Some(observations)), _watchers: shutdown.drop_guard() })
    }
}

impl Backend for LocalBackend {
    async fn ensure(&self, plan: StartPlan) -> Result<Instance, BackendError> {
        let _permit = self.runtime.permit().await;
        let (runtime, workspace) = (self.runtime.clone(), plan.workspace.clone());
        let agent = blocking(format!("start the agent of {workspace}"), move || {
            let paths = runtime.layout.workspace(&plan.workspace);
            launch::ensure(&runtime.config, &runtime.layout, &paths, &runtime.host, &plan)
        })
        .await?;
        Ok(self.runtime.watch(workspace, agent))
    }

    async fn resize(&self, _resize: ResizePlan) -> Result<(), BackendError> {
        // Resources are only counted against quotas; the local backend enforces no limits.
        Ok(())
    }

    async fn stop(&self, workspace: WorkspaceId, _last: Epoch) -> Result<(), BackendError> {
        // `_last` is not needed: no other control plane can have started a later epoch, because
        // the data directory is locked.
        let _permit = self.runtime.permit().await;
        let paths = self.runtime.layout.workspace(&workspace);
        sweep::terminate_agent(&paths, &self.runtime.host).await;
        sweep::terminate_all(&workspace)
            .await
            .map_err(|error| BackendError::new(format!("stop the processes of {workspace}"), error))
    }

    async fn remove(&self, workspace: WorkspaceId) -> Result<(), BackendError> {
        let _permit = self.runtime.permit().await;
        let layout = self.runtime.layout.clone();
        blocking(format!("remove the storage of {workspace}"), move || {
            remove::remove_tree(&layout.workspaces, workspace.as_str())
        })
        .await
    }

    fn observe(&self) -> impl Stream<Item = Observation> + Send + 'static {
        let receiver = self.observations.lock().unwrap_or_else(|e| e.into_inner()).take();
        let later = receiver.map(ReceiverStream::new).map_or_else(|| stream::empty().boxed(), |s| s.boxed());
        let runtime = self.runtime.clone();
        let scans = stream::unfold(Some(AgentScan::All), move |scan| {
            let runtime = runtime.clone();
            async move { Some(runtime.list(scan?).await) }
        });
        stream::select(scans.flat_map(stream::iter), later)
    }
}

impl LocalRuntime {
    /// Waits for one of the [`MAX_CONCURRENT_OPERATIONS`] permits. The caller holds the permit for
    /// as long as its operation runs.
    async fn permit(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed. If it were, running without a limit is better than not
        // running.
        self.permits.acquire().await.ok()
    }

    /// Runs a scan and adopts the running agents. Returns the observations and the next scan, if
    /// one is needed. Agents that ended while no control plane ran are reported before the list.
    ///
    /// The driver treats an agent that is not listed as ended, and ends its processes. An agent
    /// that could not be inspected is therefore listed as unknown and scanned again. It does not
    /// delay the others.
    async fn list(self, scan: AgentScan) -> (Vec<Observation>, Option<AgentScan>) {
        if let AgentScan::Retry(_) = scan {
            sleep(RETRY_PAUSE).await;
        }
        let ScanResult { found, unknown } = loop {
            let (layout, host, scan) = (self.layout.clone(), self.host.clone(), scan.clone());
            match blocking("scan for agents".into(), move || scan.run(&layout, &host)).await {
                Ok(seen) => break seen,
                Err(error) => {
                    tracing::error!(%error, "no workspace starts until a scan for agents succeeds; retrying");
                    sleep(RETRY_PAUSE).await;
                }
            }
        };
        let (mut observations, mut running) = (Vec::new(), Vec::new());
        for (id, found) in found {
            match found {
                Ok(agent) => {
                    tracing::info!(workspace = %id, pid = agent.process.pid, "adopted running agent");
                    running.push(self.watch(id, agent));
                }
                Err(record) => {
                    let paths = self.layout.workspace(&id);
                    let detail =
                        format!("{} while no control plane was running", launch::describe_end(None, &paths));
                    let instance = self.instance(id, record.epoch, record.pid, record.start_ticks);
                    observations.push(Observation::Ended { instance, detail });
                }
            }
        }
        let again = (!unknown.is_empty()).then(|| AgentScan::Retry(unknown.clone()));
        observations.push(Observation::Listed { running, unknown });
        (observations, again)
    }

    /// Spawns the task that waits for the end of the agent and reports it to the driver.
    fn watch(&self, workspace: WorkspaceId, agent: RunningAgent) -> Instance {
        let paths = self.layout.workspace(&workspace);
        let mut instance =
            self.instance(workspace, agent.epoch, agent.process.pid, agent.process.start_ticks);
        instance.boot_id = agent.boot_id;
        let (ended, observation_tx, shutdown) =
            (instance.clone(), self.observation_tx.clone(), self.shutdown.clone());
        self.tasks.spawn(shutdown.run_until_cancelled_owned(async move {
            let detail = launch::wait_end(agent.process, &paths).await;
            // Sending fails only after the driver has ended.
            let _gone = observation_tx.send(Observation::Ended { instance: ended, detail }).await;
        }));
        instance
    }

    fn instance(&self, workspace: WorkspaceId, epoch: Epoch, pid: u32, start_ticks: u64) -> Instance {
        Instance {
            epoch,
            id: self.host.instance_id(pid, start_ticks),
            boot_id: None,
            address: AgentAddress::Unix(self.layout.workspace(&workspace).socket),
            workspace,
            resources: None,
            image: None,
        }
    }
}

async fn blocking<T: Send + 'static, E: Display + Send + 'static>(
    operation: String,
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, BackendError> {
    match spawn_blocking(work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(BackendError::new(operation, error)),
        Err(panic) => Err(BackendError::new(operation, panic)),
    }
}

/// Returns the credential of this workspace's agent.
fn credential(workspace: &WorkspaceId, secret: &str) -> String {
    format!("{workspace}.{secret}")
}

/// Authenticates the agents that the local backend started.
#[derive(Debug)]
pub struct LocalReviewer {
    snapshots: SnapshotReceiver,
    host: HostBoot,
}

impl LocalReviewer {
    /// Creates a reviewer. `snapshots` contain the digests of the secrets. Fails if the machine's
    /// boot ID cannot be read.
    pub fn new(snapshots: SnapshotReceiver) -> Result<Self, BackendError> {
        let host = HostBoot::current()?;
        Ok(Self { snapshots, host })
    }
}

impl AgentReviewer for LocalReviewer {
    type CredentialProof = ();

    async fn review(&self, credential: &str) -> Result<Option<ReviewedCredential<()>>, BackendError> {
        let parts = credential.split_once('.').and_then(|(id, secret)| Some((id.parse().ok()?, secret)));
        let Some((workspace, secret)) = parts else { return Ok(None) };
        let digest = self.snapshots.borrow().get(&workspace).and_then(|view| view.credential);
        // Compared for unknown workspaces too, so that the timing reveals nothing.
        let right = Fingerprint::of(secret.as_bytes()).matches(&digest.unwrap_or(Fingerprint([0; 32])));
        Ok((digest.is_some() && right).then_some(ReviewedCredential { workspace, proof: () }))
    }

    fn instance(&self, (): (), process: ReportedProcess) -> InstanceId {
        self.host.instance_id(process.pid, process.start_ticks)
    }
}

/// Paths below the data directory that all workspaces share.
#[derive(Debug, Clone)]
struct DataLayout {
    workspaces: PathBuf,
    control_socket: PathBuf,
}

/// Directories and files of one workspace.
#[derive(Debug, Clone)]
struct WorkspacePaths {
    root: PathBuf,
    /// The user's HOME, which contains the files of the workspace.
    home: PathBuf,
    /// Directory of the agent's own files.
    state: PathBuf,
    run: PathBuf,
    /// Unix socket that the agent listens on.
    socket: PathBuf,
    /// Credential with which the agent authenticates to the control plane.
    credential: PathBuf,
    /// Record of the agent process that the control plane started. The control plane writes it.
    record: PathBuf,
    /// Process and boot id of the agent. The agent writes it.
    self_record: PathBuf,
    /// Reason and exit code of an agent that ended by itself. The agent writes it.
    exit_record: PathBuf,
    log: PathBuf,
}

/// Returns the path of the unix socket on which the control plane listens for agents.
pub fn control_socket(data: &Path) -> PathBuf {
    data.join("run/control.sock")
}

impl DataLayout {
    fn create(data: &Path) -> io::Result<Self> {
        // Agents receive these paths. They have another working directory, so the paths must be
        // absolute.
        private_dir(data)?;
        let data = data.canonicalize()?;
        let layout = Self { workspaces: data.join("workspaces"), control_socket: control_socket(&data) };
        private_dir(&layout.workspaces)?;
        Ok(layout)
    }

    fn workspace(&self, id: &WorkspaceId) -> WorkspacePaths {
        let root = self.workspaces.join(id.as_str());
        let (state, run) = (root.join("state"), root.join("run"));
        WorkspacePaths {
            home: root.join("home"),
            socket: run.join("agent.sock"),
            credential: run.join("credential"),
            record: run.join("agent.json"),
            self_record: state.join("agent.json"),
            exit_record: state.join("exit.json"),
            log: root.join("agent.log"),
            state,
            run,
            root,
        }
    }

    /// Returns the ids of all workspaces that have a directory.
    fn ids(&self) -> io::Result<Vec<WorkspaceId>> {
        let names = fs::read_dir(&self.workspaces)?.map(|entry| Ok(entry?.file_name()));
        let names: Vec<_> = names.collect::<io::Result<_>>()?;
        Ok(names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect())
    }
}

impl WorkspacePaths {
    fn create(&self) -> io::Result<()> {
        [&self.root, &self.home, &self.state, &self.run].into_iter().try_for_each(|path| private_dir(path))
    }

    /// Opens the log for appending. Rotates the log first if it has at least [`LOG_BYTES`].
    fn open_log(&self) -> io::Result<fs::File> {
        if fs::symlink_metadata(&self.log).is_ok_and(|meta| meta.len() >= LOG_BYTES) {
            fs::rename(&self.log, self.log.with_extension("log.1"))?;
        }
        fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&self.log)
    }
}

fn private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::watch;

    use super::*;
    use crate::{
        samples,
        snapshot::{Snapshot, WorkspaceView},
    };

    fn view(bits: u64, secret: Option<&str>) -> WorkspaceView {
        let credential = secret.map(|secret| Fingerprint::of(secret.as_bytes()));
        WorkspaceView { credential, ..samples::view(samples::spec(bits, "demo")) }
    }

    #[tokio::test]
    async fn credential_is_valid_for_its_own_workspace_only() {
        let (mine, other, new) =
            (WorkspaceId::from_bits(1), WorkspaceId::from_bits(2), WorkspaceId::from_bits(3));
        let views = [view(1, Some("s3cret")), view(2, Some("another")), view(3, None)];
        let workspaces = views.into_iter().map(|view| (view.spec.id.clone(), Arc::new(view))).collect();
        let (_driver, snapshots) = watch::channel(Arc::new(Snapshot {
            generation: 1,
            workspaces,
            observed_time: Default::default(),
            down: None,
        }));
        let reviewer = LocalReviewer::new(snapshots).unwrap();
        let good = reviewer.review(&credential(&mine, "s3cret")).await.unwrap();
        assert_eq!(good, Some(ReviewedCredential { workspace: mine.clone(), proof: () }));
        for bad in [
            credential(&mine, ""),
            credential(&mine, "another"),
            credential(&other, "s3cret"),
            credential(&new, ""),
            credential(&WorkspaceId::from_bits(9), "s3cret"),
            "s3cret".into(),
            String::new(),
        ] {
            assert_eq!(reviewer.review(&bad).await.unwrap(), None, "{bad}");
        }
        let instance = |pid, start_ticks| reviewer.instance((), ReportedProcess { pid, start_ticks });
        assert_eq!(instance(7, 9), instance(7, 9));
        assert_ne!(instance(7, 9), instance(7, 10), "a reused process id is another agent");
        assert_ne!(instance(7, 9), instance(8, 9));
    }
}
