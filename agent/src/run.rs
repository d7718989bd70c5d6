//! Composition root: creates the parts of the agent, connects them, and shuts them down in order.

mod workspace;

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

use podling_proto::token;
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, server::HealthReporter};

use self::workspace::WorkspaceRuntime;
use crate::{
    child::{ChildLimits, Children},
    claim::ClaimReceiver,
    config::AgentConfig,
    control_connection::{AgentDescription, ControlConnection},
    init::{command::WorkspaceCommand, forward::RunningCommand},
    metrics::AgentMetrics,
    procfs,
    server::{
        Server,
        identity::{AgentIdentity, AgentIdentityError},
        info::AgentInfoFile,
        listener::{AgentListener, ListenError},
        router::{DescriptorError, RouterParts, router},
        shutdown_trailers::StreamShutdown,
    },
    shutdown::{ShutdownHandle, ShutdownReason, ShutdownRequest},
    tasks::TaskSupervisor,
};

/// Time that open calls get to end during shutdown.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// Time for the control connection to send its final reports.
const FINAL_REPORTS_TIMEOUT: Duration = Duration::from_secs(2);
/// Service name under which the health service reports the agent as a whole.
const OVERALL_HEALTH: &str = "";
/// Features of this agent, which the hello message lists.
const CAPABILITIES: &[&str] = &["terminals", "processes", "files", "archives", "activity", "sleep"];

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
    let description = describe_agent(&identity)?;

    let (claims, claimed) = watch::channel(None);
    let children = Children::new(config.orphans).with_limits(limits);
    let workspace = WorkspaceRuntime::new(&config, children, claimed.clone())
        .map_err(|source| StartError::Root { path: config.root.clone(), source })?;
    let (metrics, health, stages) = (AgentMetrics::new(), HealthReporter::new(), ShutdownStages::default());
    let connection = ControlConnection {
        control: config.control.clone(),
        description: description.clone(),
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
    write_info(&config, &description, &server)?;
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
    let children = workspace.children.clone();
    tasks.supervise("reaper", move || {
        let children = children.clone();
        async move { children.reap().await }
    });
    let activity = workspace.activity.clone();
    tasks.supervise("activity", move || {
        let activity = activity.clone();
        async move { activity.run().await }
    });
    let (files, until) = (workspace.files.clone(), tasks.token().clone());
    tasks.supervise("uploads", move || {
        let (files, until) = (files.clone(), until.clone());
        async move {
            files.expire_uploads(until).await;
            Ok::<_, Infallible>(())
        }
    });
    if let Some(service) = workspace.name_service.clone() {
        tasks.supervise("name service", move || {
            let service = service.clone();
            async move { service.run().await }
        });
    }
    let running = RunningCommand::default();
    let command = WorkspaceCommand {
        children: workspace.children.clone(),
        launcher: workspace.launcher.clone(),
        fallback: config.command.clone(),
        running: running.clone(),
        activity: workspace.activity.clone(),
        processes_ending: stages.processes_ending.clone(),
    };
    tasks.supervise("command", move || {
        let command = command.clone();
        async move {
            command.keep_running().await;
            Ok::<_, Infallible>(())
        }
    });
    tasks.supervise("signals", move || {
        let running = running.clone();
        async move { running.forward().await.map(|never| match never {}) }
    });
    let terminals = workspace.terminals.clone();
    tasks.supervise("journal", move || {
        let terminals = terminals.clone();
        async move { terminals.persist().await }
    });
    let (sleeper, processes_ending) = (workspace.clone(), stages.processes_ending.clone());
    tasks.supervise("sleep", move || {
        let (workspace, processes_ending) = (sleeper.clone(), processes_ending.clone());
        async move { workspace.fall_asleep(&processes_ending).await }
    });
    let reported = stages.reported.clone();
    tasks.supervise("control connection", move || {
        let (connection, reported) = (connection.clone(), reported.clone());
        async move {
            let over = connection.run().await;
            reported.cancel();
            over
        }
    });
    tasks
}

async fn set_health(health: &HealthReporter, services: &[&'static str], status: ServingStatus) {
    for service in services {
        health.set_service_status(*service, status).await;
    }
}

fn describe_agent(identity: &AgentIdentity) -> Result<AgentDescription, StartError> {
    Ok(AgentDescription {
        capabilities: CAPABILITIES,
        boot_id: token::random(12),
        fingerprint: identity.fingerprint(),
        start_ticks: procfs::own_start().map_err(StartError::Proc)?,
    })
}

fn write_info(
    config: &AgentConfig,
    description: &AgentDescription,
    server: &Server,
) -> Result<(), StartError> {
    let path = &config.info_file;
    let failed = |source| StartError::Info { path: path.clone(), source };
    let info = AgentInfoFile {
        pid: std::process::id(),
        start_ticks: description.start_ticks,
        boot_id: description.boot_id.clone(),
        address: server.address().map_err(failed)?,
        fingerprint: description.fingerprint.clone(),
    };
    info.write(path).map_err(failed)?;
    tracing::info!(address = info.address, fingerprint = info.fingerprint, "listening");
    Ok(())
}

fn readiness(ready: Arc<AtomicBool>, claims: ClaimReceiver) -> Arc<dyn Fn() -> bool + Send + Sync> {
    Arc::new(move || ready.load(Ordering::Relaxed) && claims.borrow().is_some())
}
