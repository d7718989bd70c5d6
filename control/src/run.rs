//! The composition root: makes the parts, connects them, runs them, and ends them in order.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc};

use podling_core::id::WorkspaceId;
use podling_proto::control::v1::{
    backups_server::BackupsServer, tokens_server::TokensServer, workspaces_server::WorkspacesServer,
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::Routes;
use tonic_health::{ServingStatus, server::HealthReporter};
use tower::Layer;

use crate::{
    agents,
    api::{backups::BackupsApi, json, tokens::TokensApi, workspaces::WorkspacesApi},
    backend::{
        BackendError,
        local::{LocalBackend, LocalConfig, LocalReviewer, control_socket},
    },
    backups::{Backups, OpenError},
    config::Config,
    driver::{BackendGone, Driver, DriverHandle},
    gateway::Gateway,
    identity::{FileError, Identity, IdentityError, file, server_config},
    keeper::AgentKeeper,
    metrics::Metrics,
    open_files::OpenFiles,
    server::{AgentsFront, Front, Listener, Stopping, cors},
    store::{Store, StoreError},
    template::{TemplateError, Templates},
};

mod claim;
mod leave;
mod services;

/// Wishes to wake that wait for the driver: as many as there are calls that wait. When it is full a call wishes again in a moment.
const WAKES: usize = 1024;

/// Said when everything answers.
#[derive(Debug, Clone)]
pub struct Ready {
    /// Where clients find it.
    pub url: String,
    /// Where the root token is.
    pub root_token: PathBuf,
}

/// Why the control plane does not run, or does not run any more.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Another one has the data folder.
    #[error(
        "the data folder {data} is in use by another control plane (process {pid}): use that one, stop it with \
         `podling down --data {data}`, or give this one another folder with --data", data = data.display()
    )]
    InUse {
        /// The folder.
        data: PathBuf,
        /// The other's process.
        pid: String,
    },
    /// Others use the data folder for something else.
    #[error(
        "the data folder {data} is open to others (mode {mode:o}) and holds what is not Podling's ({holds}): give it a folder of \
         its own with --data, or `chmod 700` this one if nobody else uses it", data = data.display()
    )]
    Shared {
        /// The folder.
        data: PathBuf,
        /// Its mode.
        mode: u32,
        /// Something in it.
        holds: String,
    },
    /// A file in the data folder.
    #[error(transparent)]
    File(#[from] FileError),
    /// Tokens, keys, certificates.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A template.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// What is stored.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Where archives are kept.
    #[error(transparent)]
    Backups(#[from] OpenError),
    /// What runs workspaces.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The certificate for the public address.
    #[error("the certificate given with --tls-cert and --tls-key cannot be used")]
    Tls(#[source] rustls::Error),
    /// The public address.
    #[error(
        "listening on {address}; is another program there? Choose another address with --listen, port 0 for a free one"
    )]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// Where agents dial.
    #[error("listening for agents at {path}", path = path.display())]
    ListenAgents {
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The description of the services.
    #[error("describing the services")]
    Reflection(#[source] tonic_reflection::server::Error),
    /// The driver ended.
    #[error("the driver ended")]
    Driver(#[from] BackendGone),
    /// A part that runs as long as the control plane ended by itself.
    #[error("{0} ended by itself; start the control plane again: the workspaces go on meanwhile")]
    Ended(&'static str),
}

/// Runs the control plane until `shutdown`, or until it was told to go down. `ready` is called once, when it answers.
pub async fn run(
    config: Config,
    shutdown: CancellationToken,
    ready: impl FnOnce(Ready),
) -> Result<(), RunError> {
    let files = OpenFiles::raise();
    let folder = claim::DataFolder::claim(&config.data)?;
    let identity = Arc::new(Identity::open(&config.data)?);
    let templates = Templates::load(&config.templates, &config.default_template)?;
    let backend = LocalBackend::open(LocalConfig {
        data: config.data.clone(),
        agent_command: config.agent_command.clone(),
        control_ca: identity.ca_file().to_owned(),
        agent_files: files,
    })?;
    // Opened now, so that a store that cannot be used is said at the start and not when a workspace has to be archived.
    file::make_private_folder(&config.scratch_folder())?;
    let backups = Backups::open(&config.backups, config.scratch_folder())?;
    let keeper = Arc::new(AgentKeeper::new(backups, identity.clone()));
    let store = Store::open(&config.data.join("control").join("store.redb"))?;
    // Set by the driver itself after `down`.
    let driven = CancellationToken::new();
    let (driver, handle) = Driver::open(store, backend, keeper, config.quotas, driven.clone())?;

    let stopping = Stopping::default();
    let metrics = Arc::new(Metrics::new(handle.snapshots(), queue(&handle)));
    let (wakes, wished) = mpsc::channel(WAKES);
    let gateway = Arc::new(Gateway::new(
        identity.clone(),
        handle.snapshots(),
        wakes,
        metrics.clone(),
        stopping.streams.clone(),
    ));
    let health = HealthReporter::new();
    let tokens = TokensServer::new(TokensApi::new(identity.clone(), handle.snapshots()));
    let workspaces = WorkspacesApi::new(handle.clone(), Arc::new(templates), stopping.streams.clone());
    let backups = BackupsApi::new(handle.clone());
    let json = json::router(workspaces.clone(), backups.clone());
    let own = Routes::new(tokens)
        .add_service(WorkspacesServer::new(workspaces))
        .add_service(BackupsServer::new(backups));
    let grpc = services::with_description(own, &health)?;
    let front =
        Front::new(identity.clone(), gateway.clone(), metrics.clone(), grpc, json, stopping.draining.clone());
    let sessions = TaskTracker::new();
    let agents = agents::service(
        handle.clone(),
        LocalReviewer::new(handle.snapshots())?,
        identity.token_keys(),
        sessions.clone(),
        stopping.streams.clone(),
        metrics.beats.clone(),
    );
    let agents = AgentsFront::new(Routes::new(agents).into_axum_router());

    let public = listen(&config, &stopping, &metrics).await?;
    let url = public.url().unwrap_or_default();
    let internal = listen_for_agents(&config, &identity, &stopping, &metrics)?;

    let mut parts = Parts::new();
    let leaving = config.leaves_idle_asleep.then(|| handle.clone());
    parts.spawn(async move { Ok(driver.run().await.map(|()| "the driver")?) });
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

    // While agents are still heard, and who is attached is still told.
    if let (Some(driver), true) = (leaving, shutdown.is_cancelled()) {
        leave::leave(&driver).await;
    }

    // Not ready → accept nothing → tell streams → drain → force: the listeners go through it, each for its connections.
    // The driver goes last, so that calls under way are answered.
    health.set_service_status("", ServingStatus::NotServing).await;
    stopping.draining.cancel();
    tracing::info!("shutting down");
    let doors = finish(doors).await;
    // Their streams are closed, so they have ended or are about to.
    sessions.close();
    sessions.wait().await;
    tracing::debug!("all connections are closed");
    gateway.close().await;
    drop(gateway);
    // It may have ended by itself because everything is down; that is no failure.
    let asked = driven.is_cancelled() || shutdown.is_cancelled();
    driven.cancel();
    let parts = finish(parts).await;
    tracing::debug!("all parts have ended");
    parts.and(doors)?;
    match early {
        Some(ended) if !asked => Err(RunError::Ended(flatten(ended)?)),
        _ => Ok(()),
    }
}

/// What runs as long as the control plane; each says which it was when it ends.
type Parts = JoinSet<Result<&'static str, RunError>>;

/// Waits for all; the first failure counts.
async fn finish(mut parts: Parts) -> Result<(), RunError> {
    let mut failed = Ok(());
    while let Some(ended) = parts.join_next().await {
        failed = failed.and(flatten(ended).map(|_| ()));
    }
    failed
}

/// How many events wait for the driver.
fn queue(driver: &DriverHandle) -> impl Fn() -> usize + Send + Sync + 'static {
    let driver = driver.clone();
    move || driver.waiting()
}

async fn listen(config: &Config, stopping: &Stopping, metrics: &Metrics) -> Result<Listener, RunError> {
    let tls = config.tls.as_ref().map(|files| server_config(&files.certificate, &files.key));
    let tls = tls.transpose().map_err(RunError::Tls)?.map(Arc::new);
    Listener::tcp(config.listen, tls, stopping.clone(), metrics.connections.clone())
        .await
        .map_err(|source| RunError::Listen { address: config.listen, source })
}

fn listen_for_agents(
    config: &Config,
    identity: &Identity,
    stopping: &Stopping,
    metrics: &Metrics,
) -> Result<Listener, RunError> {
    let path = control_socket(&config.data);
    Listener::unix(&path, identity.agents_tls(), stopping.clone(), metrics.agent_connections.clone())
        .map_err(|source| RunError::ListenAgents { path, source })
}

/// Passes on to the driver for which workspaces calls wait.
async fn wake(driver: DriverHandle, mut wished: mpsc::Receiver<WorkspaceId>) -> &'static str {
    while let Some(id) = wished.recv().await {
        if let Err(error) = driver.wake(id.clone()).await {
            tracing::debug!(workspace = %id, %error, "not woken");
        }
    }
    "the waker"
}

fn flatten(
    ended: Result<Result<&'static str, RunError>, tokio::task::JoinError>,
) -> Result<&'static str, RunError> {
    ended.unwrap_or_else(|error| {
        tracing::error!(%error, "a part of the control plane panicked");
        Err(RunError::Ended("a part that panicked"))
    })
}
