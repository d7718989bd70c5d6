//! The backend `local`: workspaces are processes of this user on this machine, one trust domain.
//!
//! An agent runs in its own session, so that it outlives the control plane. A restarted control
//! plane finds it by `run/agent.json`: process id, start time and boot ID of the machine. The
//! kernel reports its end through a pidfd, whether it is a child or was adopted. Ending a
//! workspace's processes needs no file; see `sweep`.
//!
//! Must not know why a workspace is started or stopped.

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

/// Capacity of the channel to the driver. The watchers of ended agents wait when it is full.
const OBSERVATIONS: usize = 256;

/// Concurrent starts, stops and removals; further ones wait. Most of each is waiting for processes
/// to end, but each also scans /proc or forks.
const MAX_CONCURRENT_OPERATIONS: usize = 32;

/// Pause after a failed scan, as when descriptors or memory are exhausted.
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
    /// Dropped with the backend: ends the watchers but not the agents.
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
    /// Creates the directory for workspaces if it is missing.
    pub fn open(mut config: LocalConfig) -> Result<Self, BackendError> {
        // Agents have another working directory, so relative paths are made absolute for them.
        let absolute = |path: &Path| {
            std::path::absolute(path)
                .map_err(|e| BackendError::new(format!("resolving {}", path.display()), e))
        };
        config.control_ca = absolute(&config.control_ca)?;
        if let Some(program) = config.agent_command.first_mut().filter(|program| program.contains('/')) {
            *program = absolute(Path::new(program))?.display().to_string();
        }
        let host = HostBoot::current()?;
        let layout = DataLayout::create(&config.data)
            .map_err(|e| BackendError::new(format!("creating {}", config.data.display()), e))?;
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
            let paths = runtime.layout.workspace(&plan.workspace);
            launch::ensure(&runtime.config, &runtime.layout, &paths, &runtime.host, &plan)
        })
        .await?;
        Ok(self.runtime.watch(workspace, agent))
    }

    /// No other control plane can act here, because the data directory is locked.
    async fn resize(&self, _resize: ResizePlan) -> Result<(), BackendError> {
        // Resources are only counted against quotas; the local backend enforces no limits.
        Ok(())
    }

    async fn stop(&self, workspace: WorkspaceId, _last: Epoch) -> Result<(), BackendError> {
        let _permit = self.runtime.permit().await;
        let paths = self.runtime.layout.workspace(&workspace);
        sweep::terminate_agent(&paths, &self.runtime.host).await;
        sweep::terminate_all(&workspace)
            .await
            .map_err(|error| BackendError::new(format!("stopping the processes of {workspace}"), error))
    }

    async fn remove(&self, workspace: WorkspaceId) -> Result<(), BackendError> {
        let _permit = self.runtime.permit().await;
        let layout = self.runtime.layout.clone();
        blocking(format!("removing the storage of {workspace}"), move || {
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
    /// Waits for one of the [`MAX_CONCURRENT_OPERATIONS`] permits.
    async fn permit(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed. If it were, running without a limit is better than not
        // running.
        self.permits.acquire().await.ok()
    }

    /// Adopts every running agent. Ends that happened while no control plane ran come first. An
    /// agent that is not listed counts as dead and would be ended, so unreadable ones are listed as
    /// unknown and scanned again. They do not delay the others.
    async fn list(self, scan: AgentScan) -> (Vec<Observation>, Option<AgentScan>) {
        if let AgentScan::Retry(_) = scan {
            sleep(RETRY_PAUSE).await;
        }
        let ScanResult { found, unknown } = loop {
            let (layout, host, scan) = (self.layout.clone(), self.host.clone(), scan.clone());
            match blocking("scanning for agents".into(), move || scan.run(&layout, &host)).await {
                Ok(seen) => break seen,
                Err(error) => {
                    tracing::error!(%error, "failed to scan for agents; nothing starts until one succeeds");
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

    /// Spawns the task that waits for the agent's end and reports it.
    fn watch(&self, workspace: WorkspaceId, agent: RunningAgent) -> Instance {
        let paths = self.layout.workspace(&workspace);
        let identity = (agent.epoch, self.host.instance_id(agent.process.pid, agent.process.start_ticks));
        let mut instance = self.instance(workspace, &identity, &paths);
        instance.boot_id = agent.boot_id;
        let (ended, observation_tx, shutdown) =
            (instance.clone(), self.observation_tx.clone(), self.shutdown.clone());
        self.tasks.spawn(shutdown.run_until_cancelled_owned(async move {
            let detail = watch::wait_end(agent.process, &paths).await;
            // Without a driver there is no reader.
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
