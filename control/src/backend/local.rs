//! The backend `local`. All workspaces are processes of one user on this machine, so they are not
//! protected from each other.
//!
//! An agent runs in its own session, so that it outlives the control plane. A restarted control
//! plane finds the agent by `run/agent.json`, which holds the process id, its start time and the
//! machine's boot ID. A pidfd reports the end of an agent, whether the agent is a child process or
//! was adopted. The processes of a workspace are found without any file; see `sweep`.

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

/// Capacity of the channel to the driver. Tasks that report the end of an agent wait while it is
/// full.
const OBSERVATIONS: usize = 256;

/// Concurrent starts, stops and removals. Further ones wait. The limit bounds the forks, scans of
/// /proc and removals of directories that run at the same time.
const MAX_CONCURRENT_OPERATIONS: usize = 32;

/// Pause before a scan is repeated because it failed or could not inspect every agent.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

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
                        format!("{} while no control plane was running", watch::describe_end(None, &paths));
                    let instance = self.instance(id, &record.instance_of(&self.host), &paths);
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
        let identity = (agent.epoch, self.host.instance_id(agent.process.pid, agent.process.start_ticks));
        let mut instance = self.instance(workspace, &identity, &paths);
        instance.boot_id = agent.boot_id;
        let (ended, observation_tx, shutdown) =
            (instance.clone(), self.observation_tx.clone(), self.shutdown.clone());
        self.tasks.spawn(shutdown.run_until_cancelled_owned(async move {
            let detail = watch::wait_end(agent.process, &paths).await;
            // Sending fails only after the driver has ended.
            let _gone = observation_tx.send(Observation::Ended { instance: ended, detail }).await;
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
            address: crate::agent_address::AgentAddress::Unix(paths.socket.clone()),
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
