//! The composition root: creates the components, connects them, runs them, and shuts them down in
//! order.

use std::{path::PathBuf, pin::Pin, sync::Arc};

use podling_core::id::WorkspaceId;
use podling_proto::control::v1::{
    tokens_server::TokensServer, workspace_archives_server::WorkspaceArchivesServer,
    workspaces_server::WorkspacesServer,
};
use tokio::{net::TcpListener, sync::mpsc, task::JoinSet};
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
    backend::{AgentReviewer, Backend},
    backup_store::BackupStore,
    config::{self, Config},
    driver::{Driver, DriverHandle},
    gateway::Gateway,
    identity::{ControlIdentity, secret_file, server_config},
    keeper::AgentKeeper,
    metrics::ControlMetrics,
    open_files::OpenFiles,
    server::{AgentsRouter, PublicRouter, ServerListener, ShutdownSignals, cors},
};

mod claim;
mod engine;
mod error;
mod leave;
mod secrets;
mod services;
mod standby;

use engine::{AgentsAt, Engine};
pub use error::RunError;

/// Capacity of the queue of wake requests for the driver: as many as there may be held calls. When
/// it is full, a call repeats its request a second later.
const WAKES: usize = 1024;

/// Passed to the caller of [`run`] once every listener is ready.
#[derive(Debug, Clone)]
pub struct Ready {
    /// The public URL.
    pub url: String,
    /// Path of the root token's file.
    pub root_token: PathBuf,
}

/// A running control plane.
pub type ControlPlaneFuture<'a> = Pin<Box<dyn Future<Output = Result<(), RunError>> + Send + 'a>>;

/// Runs the control plane until `shutdown` is cancelled, or until a `down` request has completed.
/// Calls `ready` once, when every listener is ready.
///
/// The future is boxed so that this crate compiles it once. Otherwise every binary and test that
/// runs a control plane would compile all of it again.
pub fn run<'a>(
    config: Config,
    shutdown: CancellationToken,
    ready: impl FnOnce(Ready) + Send + 'a,
) -> ControlPlaneFuture<'a> {
    boxed(config, shutdown, Box::new(ready))
}

#[inline(never)]
fn boxed<'a>(
    config: Config,
    shutdown: CancellationToken,
    ready: Box<dyn FnOnce(Ready) + Send + 'a>,
) -> ControlPlaneFuture<'a> {
    Box::pin(run_engine(config, shutdown, ready))
}

async fn run_engine(
    config: Config,
    shutdown: CancellationToken,
    ready: Box<dyn FnOnce(Ready) + Send + '_>,
) -> Result<(), RunError> {
    let files = OpenFiles::raise();
    let folder = claim::DataFolder::claim(&config.data)?;
    match config.engine.clone() {
        config::Engine::Local => serve(engine::local(&config, files)?, config, folder, shutdown, ready).await,
        config::Engine::Kubernetes(cluster) => {
            let ours = shutdown.clone().run_until_cancelled_owned(engine::kubernetes(&config, &cluster));
            // Shut down while another replica is the leader.
            let Some(engine) = ours.await else { return Ok(()) };
            let (engine, held) = engine?;
            let done = serve(engine, config, folder, shutdown, ready).await;
            held.release().await;
            done
        }
    }
}

async fn serve<B: Backend, R: AgentReviewer>(
    engine: Engine<B, R>,
    config: Config,
    folder: claim::DataFolder,
    shutdown: CancellationToken,
    ready: Box<dyn FnOnce(Ready) + Send + '_>,
) -> Result<(), RunError> {
    let Engine { identity, backend, store, reviewer, templates, public, agents_at, follower, term } = engine;
    // Opened now, so that an unusable store fails the start rather than the first archive.
    secret_file::create_private_dir(&config.scratch)?;
    let backups = BackupStore::open(&config.backups, config.scratch.clone())?;
    let keeper = Arc::new(AgentKeeper::new(backups, identity.clone(), term));
    // The driver cancels it after `down`.
    let driven = CancellationToken::new();
    let (driver, handle) = Driver::open(store, backend, keeper, config.quotas, driven.clone()).await?;

    let stopping = ShutdownSignals::default();
    let metrics = Arc::new(ControlMetrics::new(handle.snapshots(), queue(&handle)));
    let (wakes, wished) = mpsc::channel(WAKES);
    let gateway = Arc::new(Gateway::new(
        identity.clone(),
        handle.snapshots(),
        wakes,
        metrics.clone(),
        stopping.streams.clone(),
    ));
    let health = HealthReporter::new();
    let tokens = TokensServer::new(TokensService::new(identity.clone(), handle.snapshots()));
    let workspaces = WorkspacesService::new(handle.clone(), templates, stopping.streams.clone());
    let archives = WorkspaceArchivesService::new(handle.clone());
    let json = json::router(workspaces.clone(), archives.clone());
    let own = Routes::new(tokens)
        .add_service(WorkspacesServer::new(workspaces))
        .add_service(WorkspaceArchivesServer::new(archives));
    let grpc = services::with_description(own, &health)?;
    let front = PublicRouter::new(
        identity.clone(),
        gateway.clone(),
        metrics.clone(),
        grpc,
        json,
        stopping.draining.clone(),
    );
    let sessions = TaskTracker::new();
    let agents = AgentsService::new(
        handle.clone(),
        reviewer(handle.snapshots())?,
        identity.token_keys(),
        sessions.clone(),
        stopping.streams.clone(),
        metrics.beats.clone(),
    );
    let agents = AgentsRouter::new(Routes::new(agents.into_server()).into_axum_router());

    let public = listen(public, &config, &stopping, &metrics).await?;
    let url = public.url().unwrap_or_default();
    let internal = listen_for_agents(agents_at, &identity, &stopping, &metrics)?;

    let mut parts = Parts::new();
    let leaving = config.leaves_idle_asleep.then(|| handle.clone());
    parts.spawn(async move { Ok(driver.run().await.map(|()| "the driver")?) });
    if let Some(follower) = follower {
        let following = driven.clone().run_until_cancelled_owned(follower(handle.clone()));
        parts.spawn(async move { following.await.unwrap_or(Ok("the watch over the cluster")) });
    }
    parts.spawn(async move { Ok(wake(handle, wished).await) });
    let mut doors = Parts::new();
    let front = cors(&config.cors_origins).layer(front);
    doors.spawn(async move {
        public.serve(front).await;
        Ok("the public listener")
    });
    doors.spawn(async move {
        internal.serve(agents).await;
        Ok("the listener for agents")
    });

    folder.announce(&url)?;
    ready(Ready { url, root_token: crate::identity::root_token_file(&config.data) });
    let early = tokio::select! {
        () = shutdown.cancelled() => None,
        () = driven.cancelled() => None,
        ended = parts.join_next() => ended,
        ended = doors.join_next() => ended,
    };

    // Done while agents are connected and attached clients can be notified.
    if let (Some(driver), true) = (leaving, shutdown.is_cancelled()) {
        leave::leave(&driver).await;
    }

    // Order: not ready, accept no connections, cancel streams, drain, force. Each listener does
    // this for its connections. The driver stops last, so that calls in progress complete.
    health.set_service_status("", ServingStatus::NotServing).await;
    stopping.draining.cancel();
    tracing::info!("shutting down");
    let doors = finish(doors).await;
    // Their streams are closed, so the tasks have ended or are about to.
    sessions.close();
    sessions.wait().await;
    tracing::debug!("connections closed");
    gateway.close().await;
    drop(gateway);
    // After `down` the driver ends by itself, which is not a failure.
    let asked = driven.is_cancelled() || shutdown.is_cancelled();
    driven.cancel();
    let parts = finish(parts).await;
    tracing::debug!("components stopped");
    parts.and(doors)?;
    match early {
        Some(ended) if !asked => Err(RunError::Ended(flatten(ended)?)),
        _ => Ok(()),
    }
}

/// Tasks that run as long as the control plane. Each returns its name when it ends.
type Parts = JoinSet<Result<&'static str, RunError>>;

/// Waits for all tasks and returns the first failure.
async fn finish(mut parts: Parts) -> Result<(), RunError> {
    let mut failed = Ok(());
    while let Some(ended) = parts.join_next().await {
        failed = failed.and(flatten(ended).map(|_| ()));
    }
    failed
}

/// Returns a function that counts the events that wait for the driver.
fn queue(driver: &DriverHandle) -> impl Fn() -> usize + Send + Sync + 'static {
    let driver = driver.clone();
    move || driver.waiting()
}

async fn listen(
    open: Option<TcpListener>,
    config: &Config,
    stopping: &ShutdownSignals,
    metrics: &ControlMetrics,
) -> Result<ServerListener, RunError> {
    let tls = config.tls.as_ref().map(|files| server_config(&files.certificate, &files.key));
    let tls = tls.transpose().map_err(RunError::Tls)?.map(Arc::new);
    let listener = match open {
        Some(listener) => listener,
        None => engine::bind(config.listen).await?,
    };
    Ok(ServerListener::public(listener, tls, stopping.clone(), metrics.connections.clone()))
}

fn listen_for_agents(
    at: AgentsAt,
    identity: &ControlIdentity,
    stopping: &ShutdownSignals,
    metrics: &ControlMetrics,
) -> Result<ServerListener, RunError> {
    let (tls, open) = (identity.agents_tls(), metrics.agent_connections.clone());
    match at {
        AgentsAt::Socket(path) => ServerListener::unix(&path, tls, stopping.clone(), open)
            .map_err(|source| RunError::ListenAgents { path, source }),
        AgentsAt::Open(listener) => Ok(ServerListener::agents(listener, tls, stopping.clone(), open)),
    }
}

/// Forwards wake requests of held calls to the driver.
async fn wake(driver: DriverHandle, mut wished: mpsc::Receiver<WorkspaceId>) -> &'static str {
    while let Some(id) = wished.recv().await {
        if let Err(error) = driver.wake(id.clone()).await {
            tracing::debug!(workspace = %id, %error, "failed to wake workspace");
        }
    }
    "the waker"
}

fn flatten(
    ended: Result<Result<&'static str, RunError>, tokio::task::JoinError>,
) -> Result<&'static str, RunError> {
    ended.unwrap_or_else(|error| {
        tracing::error!(%error, "control plane task panicked");
        Err(RunError::Ended("a task that panicked"))
    })
}
