//! The local backend: workspaces as processes of this user on this machine, one trust domain.
//!
//! An agent runs in a session of its own, so that it outlives the control plane, and is found again by what `run/agent.json` says
//! of it: process id, start time and the machine's boot, never by its process id alone. Its death is told by the kernel (pidfd),
//! whether it is our child or was adopted. No file is needed to end a workspace's processes: see `sweep`.
//!
//! Must not know what a workspace is wanted for.

mod launch;
mod layout;
mod look;
mod process;
mod record;
mod remove;
mod reviewer;
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
    layout::{Layout, Places},
    look::{Look, Seen},
    process::Machine,
    record::Launched,
};
use crate::{
    backend::{Backend, BackendError, Instance, InstanceId, Observation, ResizePlan, StartPlan},
    open_files::OpenFiles,
};

/// Observations that wait for the driver. When it is full, the watchers of dead agents wait.
const OBSERVATIONS: usize = 256;

/// Starts, ends and removals at once; more wait their turn. Most of each is waiting (for processes to end), but each also looks through
/// /proc or forks.
const AT_ONCE: usize = 32;

/// Pause after a look that failed (no descriptors left, no memory).
const LOOK_AGAIN: Duration = Duration::from_secs(1);

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
    inner: Inner,
    observations: Mutex<Option<mpsc::Receiver<Observation>>>,
    /// Ends the watchers with the backend; the agents run on.
    _watchers: DropGuard,
}

#[derive(Debug, Clone)]
struct Inner {
    config: LocalConfig,
    layout: Layout,
    machine: Machine,
    seen: mpsc::Sender<Observation>,
    tasks: TaskTracker,
    ending: CancellationToken,
    at_once: Arc<Semaphore>,
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
        let machine = Machine::this()?;
        let layout = Layout::make(&config.data)
            .map_err(|e| BackendError::new(format!("making {}", config.data.display()), e))?;
        let (seen, observations) = mpsc::channel(OBSERVATIONS);
        let ending = CancellationToken::new();
        let inner = Inner {
            config,
            layout,
            machine,
            seen,
            tasks: TaskTracker::new(),
            ending: ending.clone(),
            at_once: Arc::new(Semaphore::new(AT_ONCE)),
        };
        Ok(Self { inner, observations: Mutex::new(Some(observations)), _watchers: ending.drop_guard() })
    }
}

impl Backend for LocalBackend {
    async fn ensure(&self, plan: StartPlan) -> Result<Instance, BackendError> {
        let _turn = self.inner.turn().await;
        let (inner, workspace) = (self.inner.clone(), plan.workspace.clone());
        let launched = blocking(format!("starting the agent of {workspace}"), move || {
            let places = inner.layout.of(&plan.workspace);
            launch::ensure(&inner.config, &inner.layout, &places, &inner.machine, &plan)
        })
        .await?;
        Ok(self.inner.watch(workspace, launched))
    }

    /// (Nobody else can take over here: the data folder is locked.)
    async fn resize(&self, _resize: ResizePlan) -> Result<(), BackendError> {
        // The machine is shared: what a workspace has is its place in the line, and none of it is enforced.
        Ok(())
    }

    async fn stop(&self, workspace: WorkspaceId, _last: Epoch) -> Result<(), BackendError> {
        let _turn = self.inner.turn().await;
        let places = self.inner.layout.of(&workspace);
        sweep::end_agent(&places, &self.inner.machine).await;
        sweep::end_all(&workspace)
            .await
            .map_err(|error| BackendError::new(format!("ending the processes of {workspace}"), error))
    }

    async fn remove(&self, workspace: WorkspaceId) -> Result<(), BackendError> {
        let _turn = self.inner.turn().await;
        let layout = self.inner.layout.clone();
        blocking(format!("removing the storage of {workspace}"), move || {
            remove::remove(&layout.workspaces, workspace.as_str())
        })
        .await
    }

    fn observe(&self) -> impl Stream<Item = Observation> + Send + 'static {
        let receiver = self.observations.lock().unwrap_or_else(|e| e.into_inner()).take();
        let later = receiver.map(ReceiverStream::new).map_or_else(|| stream::empty().boxed(), |s| s.boxed());
        let inner = self.inner.clone();
        let looks = stream::unfold(Some(Look::All), move |look| {
            let inner = inner.clone();
            async move { Some(inner.list(look?).await) }
        });
        stream::select(looks.flat_map(stream::iter), later)
    }
}

impl Inner {
    /// Waits for a turn.
    async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // Never closed; and if it were, unbounded is better than never.
        self.at_once.acquire().await.ok()
    }

    /// Adopts every agent that lives. Those that ended while nobody looked come first. Those that cannot be looked at are named, for what
    /// is not listed counts as dead and would be ended; they are looked at again, and hold up nobody else.
    async fn list(self, look: Look) -> (Vec<Observation>, Option<Look>) {
        if let Look::Again(_) = look {
            sleep(LOOK_AGAIN).await;
        }
        let Seen { found, unknown } = loop {
            let (layout, machine, look) = (self.layout.clone(), self.machine.clone(), look.clone());
            match blocking("looking for agents".into(), move || look.at(&layout, &machine)).await {
                Ok(seen) => break seen,
                Err(error) => {
                    tracing::error!(%error, "it is not known which agents live; nothing is started until it is");
                    sleep(LOOK_AGAIN).await;
                }
            }
        };
        let (mut observations, mut running) = (Vec::new(), Vec::new());
        for (id, found) in found {
            match found {
                Ok(launched) => {
                    tracing::info!(workspace = %id, pid = launched.process.pid, "an agent is adopted");
                    running.push(self.watch(id, launched));
                }
                Err(record) => {
                    let places = self.layout.of(&id);
                    let how = format!("{}, while no control plane was up", watch::words(None, &places));
                    let instance = self.instance(id, &record.identify(&self.machine), &places);
                    observations.push(Observation::Ended { instance, how });
                }
            }
        }
        let again = (!unknown.is_empty()).then(|| Look::Again(unknown.clone()));
        observations.push(Observation::Listed { running, unknown });
        (observations, again)
    }

    /// Has somebody wait for the end of an agent.
    fn watch(&self, workspace: WorkspaceId, launched: Launched) -> Instance {
        let places = self.layout.of(&workspace);
        let identity =
            (launched.epoch, self.machine.instance_id(launched.process.pid, launched.process.start_ticks));
        let mut instance = self.instance(workspace, &identity, &places);
        instance.boot_id = launched.boot_id;
        let (ended, seen, ending) = (instance.clone(), self.seen.clone(), self.ending.clone());
        self.tasks.spawn(ending.run_until_cancelled_owned(async move {
            let how = watch::end_of(launched.process, &places).await;
            // Without a driver nobody needs to know.
            let _gone = seen.send(Observation::Ended { instance: ended, how }).await;
        }));
        instance
    }

    fn instance(&self, workspace: WorkspaceId, (epoch, id): &(u64, InstanceId), places: &Places) -> Instance {
        Instance {
            workspace,
            epoch: *epoch,
            id: id.clone(),
            boot_id: None,
            address: crate::snapshot::AgentAddress::Unix(places.socket.clone()),
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
