//! Composition root: creates the parts of the agent, connects them, and shuts them down in order.

use std::{
    convert::Infallible,
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use podling_proto::{
    agent::v1::{
        activity_server::ActivityServer, archives_server::ArchivesServer, files_server::FilesServer,
        processes_server::ProcessesServer, terminals_server::TerminalsServer,
    },
    procfs::ProcStat,
    token,
};
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::{server::NamedService, service::Routes};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    account::{Account, AccountFiles, AccountSource, NameService},
    activity::{ActivityMonitor, PresenceProbe, TerminalPresence, assessment::ActivityLevel},
    admission::AdmissionGate,
    api::{
        activity::ActivityService,
        archives::{self, ArchivesService},
        files::FilesService,
        files_http,
        processes::ProcessesService,
        terminals::TerminalsService,
    },
    archive::Archives,
    child::{ChildLimits, Children, OrphanPolicy},
    claim::ClaimReceiver,
    config::AgentConfig,
    control_connection::ControlConnection,
    files::{Files, WorkspaceRoot},
    init::{
        self,
        command::{RunningCommand, WorkspaceCommand},
    },
    metrics::{AgentMetrics, set_counter, whole},
    process::ProcessRegistry,
    server::{
        AgentIdentity, AgentIdentityError, Server,
        calls::StreamShutdown,
        listener::{AgentListener, ListenError},
        router::{DescriptorError, RouterParts, router},
    },
    shutdown::{DEFAULT_GRACE, ShutdownHandle, ShutdownReason, ShutdownRequest},
    sleep::SleepCoordinator,
    spawn::Launcher,
    state_file::AgentInfoFile,
    tasks::TaskSupervisor,
    terminal::Terminals,
};

/// Time that open calls get to end during shutdown.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// Time for the control connection to send its final reports.
const FINAL_REPORTS_TIMEOUT: Duration = Duration::from_secs(2);
/// Service name under which the health service reports the agent as a whole.
const OVERALL_HEALTH: &str = "";

/// Why the agent did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot set up TLS")]
    Identity(#[from] AgentIdentityError),
    #[error("cannot start the server")]
    ListenAddress(#[from] ListenError),
    #[error("cannot write the info file {path}")]
    Info {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot open the workspace root {path}")]
    Root {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot read the agent's start time from /proc/self/stat")]
    Proc(#[source] io::Error),
    /// Indicates a defective build.
    #[error("cannot create the reflection service")]
    Reflection(#[from] DescriptorError),
}

/// Stages of shutdown, cancelled in this order.
#[derive(Debug, Clone, Default)]
struct ShutdownStages {
    /// Processes of the workspace end, and none is started again.
    processes_ending: CancellationToken,
    /// Open streams end with a status.
    streams: CancellationToken,
    /// Connections accept no more calls.
    drain: CancellationToken,
    /// All processes and calls have ended, and the control connection sends its final reports.
    ended: CancellationToken,
    /// The final reports are sent.
    reported: CancellationToken,
}

/// Runs the agent until shutdown is requested, and returns the request. `limits` are the limits of
/// child processes.
pub async fn run(
    config: AgentConfig,
    limits: ChildLimits,
    shutdown: ShutdownHandle,
) -> Result<ShutdownRequest, StartError> {
    let identity = AgentIdentity::generate()?;
    let listener = AgentListener::bind(&config.listen).await?;
    let info_failed = |source| StartError::Info { path: config.info_file.clone(), source };
    let info = AgentInfoFile {
        pid: std::process::id(),
        start_ticks: ProcStat::own().map_err(StartError::Proc)?.start_ticks,
        boot_id: token::random(12),
        address: listener.address().map_err(info_failed)?,
        fingerprint: identity.fingerprint(),
    };

    let (claims, claimed) = watch::channel(None);
    let children = Children::new(config.orphans).with_limits(limits);
    let workspace = WorkspaceRuntime::new(&config, children, claimed.clone())
        .map_err(|source| StartError::Root { path: config.root.clone(), source })?;
    let (metrics, health, stages) = (AgentMetrics::new(), HealthReporter::new(), ShutdownStages::default());
    let connection = ControlConnection {
        control: config.control.clone(),
        info: info.clone(),
        claim_sender: Arc::new(claims),
        activity: workspace.activity.clone(),
        sleep: workspace.sleep.clone(),
        shutdown: shutdown.clone(),
        ended: stages.ended.clone(),
        metrics: metrics.clone(),
    };

    let ready = Arc::new(AtomicBool::new(true));
    let services = workspace.services();
    let (read, counted) = (workspace.clone(), metrics.clone());
    let parts = RouterParts {
        claims: claimed.clone(),
        calls: workspace.activity.calls().clone(),
        health: health.clone(),
        ready: readiness(ready.clone(), claimed),
        shutdown: StreamShutdown { closing: stages.streams.clone(), sleep: workspace.sleep.clone() },
        metrics: Arc::new(move || read.metrics(&counted)),
    };
    let health_of: Vec<_> = services.names.iter().copied().chain([OVERALL_HEALTH]).collect();
    set_health(&health, &health_of, ServingStatus::Serving).await;
    let router = router(parts, services.grpc, &services.names, services.http)?;
    let mut server = Server::new(listener, identity.server_config()?, metrics.clone());
    // The info file is written last, so that its readers find a listener.
    info.write(&config.info_file).map_err(info_failed)?;
    tracing::info!(address = info.address, fingerprint = info.fingerprint, "listening");
    let tasks = start(&workspace, connection, &config, &stages, metrics);

    let request = tokio::select! {
        request = shutdown.requested() => request,
        Err(error) = server.run(router, &stages.drain) => {
            ShutdownRequest::new(ShutdownReason::ListenerLost(error.to_string()))
        }
    };
    tracing::info!(reason = %request.reason, grace = ?request.grace, "shutting down");
    // First the agent reports that it is not ready. New connections are no longer accepted, because
    // `server.run` has ended.
    ready.store(false, Ordering::Relaxed);
    set_health(&health, &health_of, ServingStatus::NotServing).await;
    // The processes end before the streams, so that viewers still receive the exits.
    stages.processes_ending.cancel();
    tokio::select! {
        () = workspace.end_processes(request.grace) => {}
        () = shutdown.forced() => workspace.end_processes(Duration::ZERO).await,
    }
    if let Err(error) = workspace.terminals.save().await {
        tracing::error!(%error, "failed to save terminals");
    }
    stages.streams.cancel();
    stages.drain.cancel();
    server.drained(DRAIN_TIMEOUT).await;
    stages.ended.cancel();
    if timeout(FINAL_REPORTS_TIMEOUT, stages.reported.cancelled()).await.is_err() {
        tracing::debug!("final reports to the control plane timed out");
    }
    tasks.end().await;
    Ok(request)
}

/// Starts the supervised tasks, which run until the end of the shutdown.
fn start(
    workspace: &WorkspaceRuntime,
    connection: ControlConnection,
    config: &AgentConfig,
    stages: &ShutdownStages,
    metrics: AgentMetrics,
) -> TaskSupervisor {
    let mut tasks = TaskSupervisor::new(metrics);
    let run = workspace.clone();
    tasks.supervise("reaper", run.children, |children| async move { children.reap().await });
    tasks.supervise("activity", run.activity.clone(), |activity| async move { activity.run().await });
    tasks.supervise("uploads", run.files, |files| async move {
        Ok::<_, Infallible>(files.expire_uploads().await)
    });
    if let Some(service) = run.name_service {
        tasks.supervise("name service", service, |service| async move { service.run().await });
    }
    let running = RunningCommand::default();
    let command = WorkspaceCommand {
        children: workspace.children.clone(),
        launcher: run.launcher,
        fallback: config.command.clone(),
        running: running.clone(),
        activity: run.activity,
        processes_ending: stages.processes_ending.clone(),
    };
    tasks.supervise("command", command, |command| async move {
        command.keep_running().await;
        Ok::<_, Infallible>(())
    });
    tasks.supervise("signals", running, |running| async move { running.forward().await });
    tasks.supervise("journal", run.terminals, |terminals| async move { terminals.persist().await });
    let sleeper = (workspace.clone(), stages.processes_ending.clone());
    tasks.supervise("sleep", sleeper, |(workspace, processes_ending)| async move {
        workspace.fall_asleep(&processes_ending).await
    });
    let connection = (connection, stages.reported.clone());
    tasks.supervise("control connection", connection, |(connection, reported)| async move {
        let over = connection.run().await;
        reported.cancel();
        over
    });
    tasks
}

async fn set_health(health: &HealthReporter, services: &[&'static str], status: ServingStatus) {
    for service in services {
        health.set_service_status(*service, status).await;
    }
}

fn readiness(ready: Arc<AtomicBool>, claims: ClaimReceiver) -> Arc<dyn Fn() -> bool + Send + Sync> {
    Arc::new(move || ready.load(Ordering::Relaxed) && claims.borrow().is_some())
}

#[derive(Debug, Clone)]
struct WorkspaceRuntime {
    launcher: Launcher,
    children: Children,
    files: Files,
    activity: ActivityMonitor,
    sleep: SleepCoordinator,
    terminals: Terminals,
    /// `None` if the files of the image have the workspace's user.
    name_service: Option<NameService>,
    archives: Archives,
    processes: ProcessRegistry,
    claims: ClaimReceiver,
    orphans: OrphanPolicy,
}

/// Services for the agent's router.
struct AgentServices {
    grpc: Routes,
    /// Names of the services in `grpc`.
    names: Vec<&'static str>,
    /// Routes that are not gRPC.
    http: axum::Router,
}

impl WorkspaceRuntime {
    /// Creates the parts of the workspace. Fails if its root cannot be opened.
    fn new(config: &AgentConfig, children: Children, claims: ClaimReceiver) -> io::Result<Self> {
        let (root, state) = (config.root.as_path(), config.state.as_path());
        let gate = Arc::new(AdmissionGate::new());
        // Skips variables that are not UTF-8, because a claim cannot contain them either.
        let image =
            std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
        let launcher = Launcher::new(root, claims.clone()).inheriting(image);
        let (account, name_service) = account(config, &launcher.shell());
        let launcher = launcher.with_account(&account);
        let terminals = Terminals::new(Some(state), launcher.clone(), children.clone(), gate.clone());
        let processes = ProcessRegistry::new(launcher.clone(), children.clone(), gate.clone());
        let root = Arc::new(WorkspaceRoot::open(root)?);
        let files = Files::new(root.clone(), gate.clone());
        let archives = Archives::new(root, gate.clone(), state);
        let activity = ActivityMonitor::new(gate.clone(), claims.clone(), probe(terminals.clone()));
        let sleep = SleepCoordinator::new(gate, activity.clone());
        Ok(Self {
            launcher,
            children,
            files,
            activity,
            sleep,
            archives,
            terminals,
            processes,
            claims,
            orphans: config.orphans,
            name_service,
        })
    }

    fn services(&self) -> AgentServices {
        let mut names = Vec::new();
        let terminals =
            named(TerminalsServer::new(TerminalsService::new(self.terminals.clone())), &mut names);
        let processes =
            named(ProcessesServer::new(ProcessesService::new(self.processes.clone())), &mut names);
        let files = named(FilesServer::new(FilesService::new(self.files.clone())), &mut names);
        let archives = named(ArchivesServer::new(ArchivesService::new(self.archives.clone())), &mut names);
        let activity = named(ActivityServer::new(ActivityService::new(self.activity.clone())), &mut names);
        let grpc = Routes::new(terminals)
            .add_service(processes)
            .add_service(files)
            .add_service(archives)
            .add_service(activity);
        let http = files_http::router(self.files.clone()).merge(archives::router(self.archives.clone()));
        AgentServices { grpc, names, http }
    }

    /// Ends all terminals and processes: HUP and TERM at once, KILL after `grace`. From then on no
    /// terminal or process can be started.
    async fn end_processes(&self, grace: Duration) {
        let rest = async {
            // Only PID 1 or a child subreaper may end every descendant. A test process, for
            // example, may have children outside the workspace.
            if self.orphans == OrphanPolicy::Reap
                && let Err(error) = init::end_all(grace).await
            {
                tracing::error!(%error, "failed to end the workspace's processes");
            }
        };
        let cause = self.sleep.end_cause();
        tokio::join!(self.terminals.end_all(grace), self.processes.end_all(grace, cause), rest);
    }

    /// Waits for the commit of a sleep, ends all processes, saves the terminals and syncs the
    /// files. From then on the agent serves reads only. Cancels `processes_ending`, so that the
    /// workspace's command is not restarted. The supervisor retries after an error such as a full
    /// disk.
    async fn fall_asleep(&self, processes_ending: &CancellationToken) -> io::Result<()> {
        self.sleep.committed().await;
        tracing::info!("falling asleep");
        processes_ending.cancel();
        self.end_processes(DEFAULT_GRACE).await;
        self.terminals.save().await?;
        self.files.drain_and_sync().await?;
        self.sleep.complete();
        Ok(())
    }

    /// Sets the gauges, and returns the text of `/metrics`.
    fn metrics(&self, metrics: &AgentMetrics) -> String {
        let now = self.activity.snapshot();
        let (task_panics, screen_panics) = self.terminals.panics();
        let gauges = metrics.gauges();
        gauges.terminals.set(now.terminals.into());
        gauges.processes.set(now.usage.processes.into());
        gauges.activity_level.set(match now.assessment.level {
            ActivityLevel::Idle | ActivityLevel::Unspecified => 0,
            ActivityLevel::Busy => 1,
            ActivityLevel::Active => 2,
        });
        gauges.counted_idle.set(whole(now.counted_idle.as_secs()));
        gauges.cpu.set(now.usage.cpu_cores);
        gauges.memory.set(whole(now.usage.memory_bytes));
        set_counter(&gauges.terminal_output, now.terminal_bytes);
        gauges.viewers.set(self.terminals.list().iter().map(|terminal| whole(terminal.viewers)).sum());
        gauges.client_processes.set(whole(self.processes.running()));
        set_counter(&gauges.terminal_panics, task_panics + screen_panics);
        gauges.leases.set(whole(now.leases.len()));
        gauges.claimed.set(self.claims.borrow().is_some().into());
        metrics.encode()
    }
}

/// Returns the account of the workspace's programs, and the service by which they find it.
fn account(config: &AgentConfig, shell: &str) -> (Account, Option<NameService>) {
    let files = AccountFiles::default();
    let Some(socket) = &config.name_service else { return (Account::of_process(&files), None) };
    let account = Account::ensure(&files, &config.root, shell);
    let serves = account.source == AccountSource::NameService;
    let service = serves.then(|| NameService::new(socket, account.database.clone()));
    tracing::info!(user = account.user, source = ?account.source, "user of the workspace");
    (account, service)
}

fn probe(terminals: Terminals) -> PresenceProbe {
    Box::new(move || TerminalPresence {
        foreground: terminals.foreground_jobs(),
        terminals: terminals.running() as u32,
        terminal_bytes: terminals.output_bytes(),
    })
}

fn named<S: NamedService>(service: S, names: &mut Vec<&'static str>) -> S {
    names.push(S::NAME);
    service
}
