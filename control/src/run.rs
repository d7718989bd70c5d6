//! The composition root. Creates, connects and runs the components, and shuts them down in order.
//!
//! Liveness and readiness have an address of their own for the kubelet. The public address cannot
//! tell them: a standby replica forwards its connections, so the leader would answer for it.

mod data_dir;
mod error;
mod owned_objects;
mod platform;
mod secrets;
mod standby;

use std::{
    collections::BTreeSet, future::Future, net::SocketAddr, path::PathBuf, pin::Pin, sync::Arc,
    time::Duration,
};

use axum::Router;
use futures_util::future::BoxFuture;
use http::Uri;
use podling_proto::{
    DESCRIPTOR_SET,
    control::v1::{
        tokens_server::TokensServer, workspace_archives_server::WorkspaceArchivesServer,
        workspaces_server::WorkspacesServer,
    },
    method::METHODS,
};
use prometheus_client::metrics::gauge::Gauge;
use tokio::{sync::mpsc, task::JoinSet, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic_health::{
    ServingStatus,
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};
use tonic_reflection::server::Builder as Reflection;
use tower::Layer;

pub use self::error::ControlPlaneError;
use self::platform::bind;
use crate::{
    agents::AgentsService,
    api::{
        json, tokens::TokensService, workspace_archives::WorkspaceArchivesService,
        workspaces::WorkspacesService,
    },
    archiver::AgentArchiver,
    backend::{AgentReviewer, Backend, BackendError},
    backup_store::BackupStore,
    config::{self, ControlConfig, KubernetesConfig},
    driver::{Driver, DriverHandle},
    gateway::Gateway,
    identity::{ControlIdentity, secret_file, server_config},
    leader_election::Leadership,
    metrics::ControlMetrics,
    open_files::OpenFiles,
    server::{
        BoundListener, GrpcServices, MAX_MESSAGE_BYTES, PublicRouter, ServerListener, ShutdownSignals,
        TcpAcceptor, cors, probe,
    },
    snapshot::SnapshotReceiver,
    store::Store,
    template::TemplateSource,
};

/// Capacity of the queue of wake requests for the driver, one for each call that may be held. When
/// the queue is full, a held call repeats its request a second later.
const WAKES: usize = 1024;
/// Name by which a health request asks for the server as a whole.
const OVERALL_HEALTH: &str = "";
/// Largest health request, in bytes; longer ones are rejected. Health needs no token, and an
/// unauthenticated client must not make the server buffer more than the name of a service.
const MAX_HEALTH_BYTES: usize = 1024;
/// Largest reflection request, in bytes. A request is the name of a symbol or file. A stream of them
/// has no deadline, so a caller can keep many requests unfinished.
const MAX_REFLECTION_BYTES: usize = 1024;
/// Time for idle workspaces to fall asleep. Those that take longer keep running, and the next start
/// adopts them.
const SLEEP_IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// The components that differ between one machine and a cluster.
struct Platform<B, R> {
    identity: Arc<ControlIdentity>,
    backend: B,
    store: Arc<dyn Store>,
    /// Whether this replica is the leader. Permanent on one machine.
    leadership: Arc<Leadership>,
    reviewer: Box<dyn FnOnce(SnapshotReceiver) -> Result<R, BackendError> + Send>,
    templates: TemplateSource,
    public: Arc<TcpAcceptor>,
    /// The listener that agents connect to.
    agents: BoundListener,
    /// Watches the cluster, publishes statuses and renews the Lease. `None` on one machine.
    follower: Option<ClusterFollower>,
}

type ClusterFollower =
    Box<dyn FnOnce(DriverHandle) -> BoxFuture<'static, Result<&'static str, ControlPlaneError>> + Send>;

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
            serve(platform::local(&config, files).await?, config, data_dir_lock, shutdown, ready).await
        }
        config::BackendKind::Kubernetes(kubernetes) => {
            let (address, stopping) = (kubernetes.health_listen, shutdown.clone());
            let replica = run_replica(config, kubernetes, data_dir_lock, shutdown, ready);
            with_probes(address, stopping, replica).await
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
        agents: bound_agents,
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
    let counted = handle.clone();
    let queue = move || counted.queue_length();
    let metrics = Arc::new(ControlMetrics::new(handle.snapshots(), queue));
    let (wakes, wake_requests) = mpsc::channel(WAKES);
    let gateway = Arc::new(Gateway::new(
        identity.clone(),
        handle.snapshots(),
        wakes,
        metrics.clone(),
        shutdown_signals.streams.clone(),
    ));
    let health = HealthReporter::new();
    set_health(&health, ServingStatus::Serving).await;
    let tokens = TokensService::new(identity.clone(), handle.snapshots());
    let workspaces = WorkspacesService::new(handle.clone(), templates, shutdown_signals.streams.clone());
    let archives = WorkspaceArchivesService::new(handle.clone());
    let json = json::router(workspaces.clone(), archives.clone());
    let grpc = own_services(tokens, workspaces, archives, &health)?;
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
    let agents = agents.into_services().into_router();

    let tls = config.tls.as_ref().map(|files| server_config(&files.certificate, &files.key));
    let tls = tls.transpose().map_err(ControlPlaneError::Tls)?.map(Arc::new);
    let public = ServerListener::public(public, tls, shutdown_signals.clone(), metrics.connections.clone());
    let url = public.url().unwrap_or_default();
    let internal = ServerListener::agents(
        bound_agents,
        identity.agents_tls(),
        shutdown_signals.clone(),
        metrics.agent_connections.clone(),
    );

    let mut parts = ComponentTasks::new();
    let sleeping_driver = config.sleep_idle_on_shutdown.then(|| handle.clone());
    parts.spawn(async move { Ok(driver.run().await.map(|()| "the driver")?) });
    if let Some(follower) = follower {
        let following = driver_stopping.clone().run_until_cancelled_owned(follower(handle.clone()));
        parts.spawn(async move { following.await.unwrap_or(Ok("the watch of the cluster")) });
    }
    parts.spawn(async move {
        handle.wake_each(wake_requests).await;
        Ok("the forwarder of wake requests")
    });
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
        sleep_idle(&driver).await;
    }

    // The control plane reports that it is not ready. Then each listener closes, cancels streams,
    // drains its connections and closes the rest by force. The driver stops last, so that calls in
    // progress complete.
    set_health(&health, ServingStatus::NotServing).await;
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

fn flatten(
    ended: Result<Result<&'static str, ControlPlaneError>, tokio::task::JoinError>,
) -> Result<&'static str, ControlPlaneError> {
    ended.unwrap_or_else(|error| {
        tracing::error!(%error, "control plane task panicked");
        Err(ControlPlaneError::Ended("a task that panicked"))
    })
}

/// Sets the health of the control plane, of its own services, and of the agents' services, which the
/// gateway forwards.
async fn set_health(health: &HealthReporter, status: ServingStatus) {
    let services: BTreeSet<_> = METHODS.iter().filter_map(|method| method.service()).collect();
    for service in services.into_iter().chain([OVERALL_HEALTH]) {
        health.set_service_status(service, status).await;
    }
}

/// Registers all services of the public address, with health and reflection.
fn own_services(
    tokens: TokensService,
    workspaces: WorkspacesService,
    archives: WorkspaceArchivesService,
    health: &HealthReporter,
) -> Result<GrpcServices, ControlPlaneError> {
    let health = HealthServer::new(HealthService::from_health_reporter(health.clone()));
    let description = || {
        Reflection::configure()
            .register_encoded_file_descriptor_set(DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let v1 = description().build_v1().map_err(ControlPlaneError::Reflection)?;
    // Older clients, such as grpcurl, try this version first.
    let v1alpha = description().build_v1alpha().map_err(ControlPlaneError::Reflection)?;
    Ok(GrpcServices::default()
        .unary(TokensServer::new(tokens), MAX_MESSAGE_BYTES)
        .unary(WorkspacesServer::new(workspaces), MAX_MESSAGE_BYTES)
        .unary(WorkspaceArchivesServer::new(archives), MAX_MESSAGE_BYTES)
        .unary(health, MAX_HEALTH_BYTES)
        .streaming(v1, MAX_REFLECTION_BYTES)
        .streaming(v1alpha, MAX_REFLECTION_BYTES))
}

/// Puts idle workspaces to sleep, for at most [`SLEEP_IDLE_TIMEOUT`].
async fn sleep_idle(driver: &DriverHandle) {
    match timeout(SLEEP_IDLE_TIMEOUT, driver.drain_idle()).await {
        Ok(Ok(())) => {}
        // `podling down` has ended the driver meanwhile, and with it all workspaces.
        Ok(Err(error)) => tracing::debug!(%error, "driver ended before idle workspaces were put to sleep"),
        Err(_) => tracing::warn!(
            timeout = ?SLEEP_IDLE_TIMEOUT,
            "idle workspaces did not fall asleep in time; the next start adopts them"
        ),
    }
}

/// Runs `replica`, and answers probes meanwhile. The replica is ready until `stopping` is cancelled: a
/// standby replica holds connections while there is no leader, so it can take new ones at any time.
async fn with_probes(
    address: SocketAddr,
    stopping: CancellationToken,
    replica: impl Future<Output = Result<(), ControlPlaneError>>,
) -> Result<(), ControlPlaneError> {
    let bound = bind(address).await?;
    let listener = ServerListener::public(bound, None, ShutdownSignals::default(), Gauge::default());
    let answer = move |uri: Uri| {
        let response = probe(uri.path(), &stopping);
        async { response }
    };
    let probes = listener.serve(Router::new().fallback(answer));
    tokio::select! {
        done = replica => done,
        () = probes => Err(ControlPlaneError::Ended("the listener for probes")),
    }
}
