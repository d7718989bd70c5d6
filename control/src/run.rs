//! The composition root. Creates, connects and runs the components, and shuts them down in order.

use std::{path::PathBuf, pin::Pin, sync::Arc};

use podling_core::id::WorkspaceId;
use podling_proto::control::v1::{
    tokens_server::TokensServer, workspace_archives_server::WorkspaceArchivesServer,
    workspaces_server::WorkspacesServer,
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::Routes;
use tonic_health::{ServingStatus, server::HealthReporter};
use tower::Layer;

use crate::{
    agents::AgentsService,
    api::{
        json, tokens::TokensService, workspace_archives::WorkspaceArchivesService,
        workspaces::WorkspacesService,
    },
    archiver::AgentArchiver,
    backend::{AgentReviewer, Backend},
    backup_store::BackupStore,
    config::{self, ControlConfig, KubernetesConfig},
    driver::{Driver, DriverHandle},
    gateway::Gateway,
    identity::{ControlIdentity, secret_file, server_config},
    metrics::ControlMetrics,
    open_files::OpenFiles,
    server::{AgentsRouter, PublicRouter, ServerListener, ShutdownSignals, TcpAcceptor, cors},
};

mod ca_keeper;
mod data_dir;
mod disruption_budget;
mod error;
mod health;
mod platform;
mod secrets;
mod services;
mod sleep_idle;
mod standby;

pub use error::ControlPlaneError;
use health::HealthListener;
use platform::{AgentEndpoint, Platform};

/// Capacity of the queue of wake requests for the driver, one for each call that may be held. When
/// the queue is full, a held call repeats its request a second later.
const WAKES: usize = 1024;

/// Passed to the caller of [`run`] once every listener is ready.
#[derive(Debug, Clone)]
pub struct ServingInfo {
    pub url: String,
    /// Path of the root token's file.
    pub root_token: PathBuf,
}

/// The future of [`run`]. Dropping it stops the control plane without a shutdown.
pub type ControlPlaneFuture<'a> = Pin<Box<dyn Future<Output = Result<(), ControlPlaneError>> + Send + 'a>>;

/// Runs the control plane until `shutdown` is cancelled, or until a `down` request has completed.
/// Calls `ready` once, when every listener is ready.
///
/// The future is boxed so that this crate compiles it once. Otherwise every binary and test that
/// runs a control plane would compile all of it again.
pub fn run<'a>(
    config: ControlConfig,
    shutdown: CancellationToken,
    ready: impl FnOnce(ServingInfo) + Send + 'a,
) -> ControlPlaneFuture<'a> {
    boxed(config, shutdown, Box::new(ready))
}

#[inline(never)]
fn boxed<'a>(
    config: ControlConfig,
    shutdown: CancellationToken,
    ready: Box<dyn FnOnce(ServingInfo) + Send + 'a>,
) -> ControlPlaneFuture<'a> {
    Box::pin(run_platform(config, shutdown, ready))
}

async fn run_platform(
    config: ControlConfig,
    shutdown: CancellationToken,
    ready: Box<dyn FnOnce(ServingInfo) + Send + '_>,
) -> Result<(), ControlPlaneError> {
    let files = OpenFiles::raise();
    let data_dir_lock = data_dir::DataDirLock::acquire(&config.data)?;
    match config.backend.clone() {
        config::BackendKind::Local => {
            serve(platform::local(&config, files)?, config, data_dir_lock, shutdown, ready).await
        }
        config::BackendKind::Kubernetes(kubernetes) => {
            let health = HealthListener::bind(kubernetes.health_listen, shutdown.clone()).await?;
            health.serve_while(run_replica(config, kubernetes, data_dir_lock, shutdown, ready)).await
        }
    }
}

/// Stands by, serves as the leader, and releases the Lease at the end.
async fn run_replica(
    config: ControlConfig,
    kubernetes: KubernetesConfig,
    data_dir_lock: data_dir::DataDirLock,
    shutdown: CancellationToken,
    ready: Box<dyn FnOnce(ServingInfo) + Send + '_>,
) -> Result<(), ControlPlaneError> {
    let starting = shutdown.clone().run_until_cancelled_owned(platform::kubernetes(&config, &kubernetes));
    // Shut down while another replica is the leader.
    let Some(platform) = starting.await else { return Ok(()) };
    let (platform, leader) = platform?;
    let done = serve(platform, config, data_dir_lock, shutdown, ready).await;
    leader.release().await;
    done
}

async fn serve<B: Backend, R: AgentReviewer>(
    platform: Platform<B, R>,
    config: ControlConfig,
    data_dir_lock: data_dir::DataDirLock,
    shutdown: CancellationToken,
    ready: Box<dyn FnOnce(ServingInfo) + Send + '_>,
) -> Result<(), ControlPlaneError> {
    let Platform {
        identity,
        backend,
        store,
        reviewer,
        templates,
        public,
        agent_endpoint,
        follower,
        leadership,
    } = platform;
    // Opened now, so that an unusable store fails the start rather than the first archive.
    secret_file::create_private_dir(&config.scratch)?;
    let backups = BackupStore::open(&config.backups, config.scratch.clone())?;
    let archiver = Arc::new(AgentArchiver::new(backups, identity.clone(), leadership));
    // Ends the driver. The driver itself cancels the token after `down`.
    let driver_stopping = CancellationToken::new();
    let (driver, handle) =
        Driver::open(store, backend, archiver, config.quotas, driver_stopping.clone()).await?;

    let shutdown_signals = ShutdownSignals::default();
    let metrics = Arc::new(ControlMetrics::new(handle.snapshots(), queue(&handle)));
    let (wakes, wake_requests) = mpsc::channel(WAKES);
    let gateway = Arc::new(Gateway::new(
        identity.clone(),
        handle.snapshots(),
        wakes,
        metrics.clone(),
        shutdown_signals.streams.clone(),
    ));
    let health = HealthReporter::new();
    services::set_health(&health, ServingStatus::Serving).await;
    let tokens = TokensServer::new(TokensService::new(identity.clone(), handle.snapshots()));
    let workspaces = WorkspacesService::new(handle.clone(), templates, shutdown_signals.streams.clone());
    let archives = WorkspaceArchivesService::new(handle.clone());
    let json = json::router(workspaces.clone(), archives.clone());
    let own = Routes::new(tokens)
        .add_service(WorkspacesServer::new(workspaces))
        .add_service(WorkspaceArchivesServer::new(archives));
    let grpc = services::with_description(own, &health)?;
    let router = PublicRouter::new(
        identity.clone(),
        gateway.clone(),
        metrics.clone(),
        grpc,
        json,
        shutdown_signals.draining.clone(),
    );
    let sessions = TaskTracker::new();
    let agents = AgentsService::new(
        handle.clone(),
        reviewer(handle.snapshots())?,
        identity.token_keys(),
        sessions.clone(),
        shutdown_signals.streams.clone(),
        metrics.heartbeats.clone(),
    );
    let agents = AgentsRouter::new(Routes::new(agents.into_server()).into_axum_router());

    let public = listen(public, &config, &shutdown_signals, &metrics).await?;
    let url = public.url().unwrap_or_default();
    let internal = listen_for_agents(agent_endpoint, &identity, &shutdown_signals, &metrics)?;

    let mut parts = ComponentTasks::new();
    let sleeping_driver = config.sleep_idle_on_shutdown.then(|| handle.clone());
    parts.spawn(async move { Ok(driver.run().await.map(|()| "the driver")?) });
    if let Some(follower) = follower {
        let following = driver_stopping.clone().run_until_cancelled_owned(follower(handle.clone()));
        parts.spawn(async move { following.await.unwrap_or(Ok("the watch of the cluster")) });
    }
    parts.spawn(async move { Ok(forward_wake_requests(handle, wake_requests).await) });
    let mut listeners = ComponentTasks::new();
    let router = cors(&config.cors_origins).layer(router);
    listeners.spawn(async move {
        public.serve(router).await;
        Ok("the public listener")
    });
    listeners.spawn(async move {
        internal.serve(agents).await;
        Ok("the listener for agents")
    });

    data_dir_lock.announce(&url, config.tls.as_ref().map(|files| files.certificate.as_path()))?;
    ready(ServingInfo { url, root_token: crate::identity::root_token_file(&config.data) });
    let early = tokio::select! {
        () = shutdown.cancelled() => None,
        () = driver_stopping.cancelled() => None,
        ended = parts.join_next() => ended,
        ended = listeners.join_next() => ended,
    };

    // Before the listeners close, because agents must be connected, and attached clients are told
    // why their workspace falls asleep.
    if let (Some(driver), true) = (sleeping_driver, shutdown.is_cancelled()) {
        sleep_idle::sleep_idle(&driver).await;
    }

    // The control plane reports that it is not ready. Then each listener closes, cancels streams,
    // drains its connections and closes the rest by force. The driver stops last, so that calls in
    // progress complete.
    services::set_health(&health, ServingStatus::NotServing).await;
    shutdown_signals.draining.cancel();
    tracing::info!("shutting down");
    let listeners = finish(listeners).await;
    // The streams of these sessions are closed, so their tasks end at once.
    sessions.close();
    sessions.wait().await;
    tracing::debug!("connections closed");
    gateway.close().await;
    drop(gateway);
    // After `down` the driver ends by itself, which is not a failure.
    let expected = driver_stopping.is_cancelled() || shutdown.is_cancelled();
    driver_stopping.cancel();
    let parts = finish(parts).await;
    tracing::debug!("components stopped");
    parts.and(listeners)?;
    match early {
        Some(ended) if !expected => Err(ControlPlaneError::Ended(flatten(ended)?)),
        _ => Ok(()),
    }
}

/// Tasks that run as long as the control plane. Each returns its name when it ends.
type ComponentTasks = JoinSet<Result<&'static str, ControlPlaneError>>;

/// Waits for all tasks and returns the first failure.
async fn finish(mut parts: ComponentTasks) -> Result<(), ControlPlaneError> {
    let mut failed = Ok(());
    while let Some(ended) = parts.join_next().await {
        failed = failed.and(flatten(ended).map(|_| ()));
    }
    failed
}

/// Returns a function that counts the events that wait for the driver.
fn queue(driver: &DriverHandle) -> impl Fn() -> usize + Send + Sync + 'static {
    let driver = driver.clone();
    move || driver.queue_length()
}

async fn listen(
    open: Option<Arc<TcpAcceptor>>,
    config: &ControlConfig,
    shutdown_signals: &ShutdownSignals,
    metrics: &ControlMetrics,
) -> Result<ServerListener, ControlPlaneError> {
    let tls = config.tls.as_ref().map(|files| server_config(&files.certificate, &files.key));
    let tls = tls.transpose().map_err(ControlPlaneError::Tls)?.map(Arc::new);
    let listener = match open {
        Some(listener) => listener,
        None => platform::bind(config.listen).await?,
    };
    Ok(ServerListener::public(listener, tls, shutdown_signals.clone(), metrics.connections.clone()))
}

fn listen_for_agents(
    at: AgentEndpoint,
    identity: &ControlIdentity,
    shutdown_signals: &ShutdownSignals,
    metrics: &ControlMetrics,
) -> Result<ServerListener, ControlPlaneError> {
    let (tls, open) = (identity.agents_tls(), metrics.agent_connections.clone());
    match at {
        AgentEndpoint::Socket(path) => ServerListener::unix(&path, tls, shutdown_signals.clone(), open)
            .map_err(|source| ControlPlaneError::ListenAgents { path, source }),
        AgentEndpoint::Tcp(listener) => {
            Ok(ServerListener::agents(listener, tls, shutdown_signals.clone(), open))
        }
    }
}

/// Forwards wake requests of held calls to the driver.
async fn forward_wake_requests(
    driver: DriverHandle,
    mut wake_requests: mpsc::Receiver<WorkspaceId>,
) -> &'static str {
    while let Some(id) = wake_requests.recv().await {
        if let Err(error) = driver.wake(id.clone()).await {
            tracing::debug!(workspace = %id, %error, "failed to wake workspace");
        }
    }
    "the forwarder of wake requests"
}

fn flatten(
    ended: Result<Result<&'static str, ControlPlaneError>, tokio::task::JoinError>,
) -> Result<&'static str, ControlPlaneError> {
    ended.unwrap_or_else(|error| {
        tracing::error!(%error, "control plane task panicked");
        Err(ControlPlaneError::Ended("a task that panicked"))
    })
}
