//! The local backend: workspaces as processes of this user on this host, one trust domain.
//!
//! An agent runs in a session of its own, so that it outlives the control plane, and is found again by what `run/agent.json` says
//! of it: process id, start time and the host's boot, never by its process id alone. Its death is told by the kernel (pidfd),
//! whether it is our child or was adopted. No file is needed to end a workspace's processes: see `sweep`.
//!
//! Must not know what a workspace is wanted for.

mod launch;
mod layout;
mod process;
mod record;
mod remove;
mod reviewer;
mod scan;
mod sweep;
mod watch;

use std::{
    fmt::Display,
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

pub use self::{layout::control_socket, reviewer::LocalReviewer};
use self::{
    layout::{DataLayout, WorkspacePaths},
    process::HostBoot,
    record::RunningAgent,
    scan::{AgentScan, ScanResult},
};
use crate::{
    backend::{Backend, BackendError, Instance, InstanceId, Observation, ResizePlan, StartPlan},
    open_files::OpenFiles,
};

/// Observations that wait for the driver. When it is full, the watchers of dead agents wait.
const OBSERVATIONS: usize = 256;

/// Starts, ends and removals at once; more wait their permit. Most of each is waiting (for processes to end), but each also scans through
/// /proc or forks.
const MAX_CONCURRENT_OPERATIONS: usize = 32;

/// Pause after a scan that failed (no descriptors left, no memory).
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// What the local backend is told.
#[derive(Debug, Clone)]
pub struct LocalConfig {
    /// The data folder.
    pub data: PathBuf,
    /// Program and first arguments that start an agent.
    pub agent_command: Vec<String>,
    /// What agents check the control plane's certificate against (PEM).
    pub control_ca: PathBuf,
    /// How many files they may have open.
    pub agent_files: OpenFiles,
}

/// Runs workspaces as processes.
#[derive(Debug)]
pub struct LocalBackend {
    runtime: LocalRuntime,
    observations: Mutex<Option<mpsc::Receiver<Observation>>>,
    /// Ends the watchers with the backend; the agents run on.
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
    /// Makes the folder for workspaces.
    pub fn open(mut config: LocalConfig) -> Result<Self, BackendError> {
        // Agents live elsewhere: what is said relative to our folder is made absolute for them.
        let absolute = |path: &Path| {
            std::path::absolute(path).map_err(|e| BackendError::new(format!("finding {}", path.display()), e))
        };
        config.control_ca = absolute(&config.control_ca)?;
        if let Some(program) = config.agent_command.first_mut().filter(|program| program.contains('/')) {
            *program = absolute(Path::new(program))?.display().to_string();
        }
        let host = HostBoot::this()?;
        let layout = DataLayout::make(&config.data)
            .map_err(|e| BackendError::new(format!("making {}", config.data.display()), e))?;
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
        let agent = blocking(format!("starting the agent of {workspace}"), move || {
            let paths = runtime.layout.of(&plan.workspace);
            launch::ensure(&runtime.config, &runtime.layout, &paths, &runtime.host, &plan)
        })
        .await?;
        Ok(self.runtime.watch(workspace, agent))
    }

    /// (Nobody else can take over here: the data folder is locked.)
    async fn resize(&self, _resize: ResizePlan) -> Result<(), BackendError> {
        // The host is shared: what a workspace has is its place in the line, and none of it is enforced.
        Ok(())
    }

    async fn stop(&self, workspace: WorkspaceId, _last: Epoch) -> Result<(), BackendError> {
        let _permit = self.runtime.permit().await;
        let paths = self.runtime.layout.of(&workspace);
        sweep::terminate_agent(&paths, &self.runtime.host).await;
        sweep::terminate_all(&workspace)
            .await
            .map_err(|error| BackendError::new(format!("ending the processes of {workspace}"), error))
    }

    async fn remove(&self, workspace: WorkspaceId) -> Result<(), BackendError> {
        let _permit = self.runtime.permit().await;
        let layout = self.runtime.layout.clone();
        blocking(format!("removing the storage of {workspace}"), move || {
            remove::remove(&layout.workspaces, workspace.as_str())
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
    /// Waits for a permit.
    async fn permit(&self) -> Option<SemaphorePermit<'_>> {
        // Never closed; and if it were, unbounded is better than never.
        self.permits.acquire().await.ok()
    }

    /// Adopts every agent that lives. Those that ended while nobody looked come first. Those that cannot be looked at are named, for what
    /// is not listed counts as dead and would be ended; they are looked at again, and hold up nobody else.
    async fn list(self, scan: AgentScan) -> (Vec<Observation>, Option<AgentScan>) {
        if let AgentScan::Retry(_) = scan {
            sleep(RETRY_PAUSE).await;
        }
        let ScanResult { found, unknown } = loop {
            let (layout, host, scan) = (self.layout.clone(), self.host.clone(), scan.clone());
            match blocking("looking for agents".into(), move || scan.run(&layout, &host)).await {
                Ok(seen) => break seen,
                Err(error) => {
                    tracing::error!(%error, "it is not known which agents live; nothing is started until it is");
                    sleep(RETRY_PAUSE).await;
                }
            }
        };
        let (mut observations, mut running) = (Vec::new(), Vec::new());
        for (id, found) in found {
            match found {
                Ok(agent) => {
                    tracing::info!(workspace = %id, pid = agent.process.pid, "an agent is adopted");
                    running.push(self.watch(id, agent));
                }
                Err(record) => {
                    let paths = self.layout.of(&id);
                    let how = format!("{}, while no control plane was up", watch::words(None, &paths));
                    let instance = self.instance(id, &record.instance_of(&self.host), &paths);
                    observations.push(Observation::Ended { instance, how });
                }
            }
        }
        let again = (!unknown.is_empty()).then(|| AgentScan::Retry(unknown.clone()));
        observations.push(Observation::Listed { running, unknown });
        (observations, again)
    }

    /// Has somebody wait for the end of an agent.
    fn watch(&self, workspace: WorkspaceId, agent: RunningAgent) -> Instance {
        let paths = self.layout.of(&workspace);
        let identity = (agent.epoch, self.host.instance_id(agent.process.pid, agent.process.start_ticks));
        let mut instance = self.instance(workspace, &identity, &paths);
        instance.boot_id = agent.boot_id;
        let (ended, observation_tx, shutdown) =
            (instance.clone(), self.observation_tx.clone(), self.shutdown.clone());
        self.tasks.spawn(shutdown.run_until_cancelled_owned(async move {
            let how = watch::end_of(agent.process, &paths).await;
            // Without a driver nobody needs to know.
            let _gone = observation_tx.send(Observation::Ended { instance: ended, how }).await;
        }));
        instance
    }

    fn instance(
        &self,
        workspace: WorkspaceId,
        (epoch, id): &(u64, InstanceId),
        paths: &WorkspacePaths,
    ) -> Instance {
        Instance {
            workspace,
            epoch: *epoch,
            id: id.clone(),
            boot_id: None,
            address: crate::snapshot::AgentAddress::Unix(paths.socket.clone()),
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
