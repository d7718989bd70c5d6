//! Creates the platform of the control plane: processes and a database file on one machine, or pods
//! and resources in a cluster.

use std::{future::pending, net::SocketAddr, path::PathBuf, sync::Arc};

use futures_util::future::BoxFuture;
use kube::Client;
use podling_proto::token;
use tokio::{net::TcpListener, sync::watch};

use super::{RunError, secrets, standby::forward_to_leader};
use crate::{
    backend::{
        BackendError,
        kubernetes::{KubernetesBackend, KubernetesReviewer},
        local::{LocalBackend, LocalConfig, LocalReviewer, control_socket},
    },
    config::{Cluster, Config},
    driver::DriverHandle,
    identity::ControlIdentity,
    kubernetes::objects::House,
    lease::{Candidate, Held, Term},
    open_files::OpenFiles,
    snapshot::Snapshots,
    store::{KubernetesStore, RedbStore, Store},
    template::{TemplateFollower, Templates},
};

/// Random bytes of the identity that this process has in leader election.
const IDENTITY_BYTES: usize = 12;
/// The ConfigMap with the CA certificate that agents verify the control plane with.
const CONTROL_CA: &str = "podling-ca";

/// The components that differ between one machine and a cluster.
pub(super) struct Engine<B, R> {
    pub(super) identity: Arc<ControlIdentity>,
    pub(super) backend: B,
    pub(super) store: Arc<dyn Store>,
    /// The leadership of this replica.
    pub(super) term: Arc<Term>,
    pub(super) reviewer: Box<dyn FnOnce(Snapshots) -> Result<R, BackendError> + Send>,
    pub(super) templates: watch::Receiver<Arc<Templates>>,
    /// The public listener, if it is bound already.
    pub(super) public: Option<TcpListener>,
    pub(super) agents_at: AgentsAt,
    /// Follows external changes as long as the control plane runs.
    pub(super) follower: Option<Follower>,
}

pub(super) type Follower =
    Box<dyn FnOnce(DriverHandle) -> BoxFuture<'static, Result<&'static str, RunError>> + Send>;

/// The address that agents connect to.
pub(super) enum AgentsAt {
    Socket(PathBuf),
    Open(TcpListener),
}

pub(super) async fn bind(address: SocketAddr) -> Result<TcpListener, RunError> {
    TcpListener::bind(address).await.map_err(|source| RunError::Listen { address, source })
}

/// Creates the platform for processes of this machine.
pub(super) fn local(
    config: &Config,
    files: OpenFiles,
) -> Result<Engine<LocalBackend, LocalReviewer>, RunError> {
    let identity = Arc::new(ControlIdentity::open(&config.data)?);
    let templates = Templates::load(&config.templates, &config.default_template)?;
    let backend = LocalBackend::open(LocalConfig {
        data: config.data.clone(),
        agent_command: config.agent_command.clone(),
        control_ca: identity.ca_file().to_owned(),
        agent_files: files,
    })?;
    Ok(Engine {
        identity,
        backend,
        store: Arc::new(RedbStore::open(&config.data.join("control").join("store.redb"))?),
        leadership: Leadership::permanent(),
        reviewer: Box::new(LocalReviewer::new),
        // Local templates do not change while the control plane runs.
        templates: watch::channel(Arc::new(templates)).1,
        public: None,
        agents_at: AgentsAt::Socket(control_socket(&config.data)),
        follower: None,
    })
}

/// Creates the platform for pods once this replica is the leader. Until then it forwards
/// connections to the leader.
pub(super) async fn kubernetes(
    config: &Config,
    cluster: &Cluster,
) -> Result<(Engine<KubernetesBackend, KubernetesReviewer>, Arc<Held>), RunError> {
    let failed = |source| RunError::Cluster {
        operation: "connecting to the cluster".into(),
        source: Box::new(source),
    };
    let client = Client::try_default().await.map_err(failed)?;
    let namespace = cluster.namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned());
    let (public, agents) = (bind(config.listen).await?, bind(cluster.agents_listen).await?);
    let leader = {
        let address = cluster.advertise.map(|address| address.to_string());
        let candidate =
            LeaseCandidate::new(client.clone(), &namespace, token::random(IDENTITY_BYTES), address);
        let (holder, for_agents) = (candidate.holder_address(), candidate.holder_address());
        tokio::select! {
            leader = candidate.acquire() => Arc::new(leader),
            never = async {
                tokio::join!(forward_to_leader(&public, holder), forward_to_leader(&agents, for_agents));
                pending().await
            } => never,
        }
    };
    let engine = deciding(config, cluster, client, &namespace, &leader, (public, agents)).await?;
    Ok((engine, leader))
}

/// Creates the platform for pods as the leader.
async fn deciding(
    config: &Config,
    cluster: &Cluster,
    client: Client,
    namespace: &str,
    leader: &Arc<Leader>,
    (public, agents): (TcpListener, TcpListener),
) -> Result<Engine<KubernetesBackend, KubernetesReviewer>, RunError> {
    secrets::share(&client, namespace, &config.data).await?;
    let identity = Arc::new(ControlIdentity::open(&config.data)?);
    secrets::publish_ca(&client, namespace, CONTROL_CA, identity.ca_file()).await?;
    let defaults = PodDefaults {
        agent_image: cluster.agent_image.clone(),
        control: cluster.agents_url.clone(),
        control_ca: CONTROL_CA.to_owned(),
        service_account: cluster.workspace_account.clone(),
    };
    let store = Arc::new(KubernetesStore::new(client.clone(), namespace, leader.leadership()));
    let opened = TemplateFollower::open(&client, namespace, &config.default_template).await;
    let (follower, templates) = opened.map_err(|source| RunError::Cluster {
        operation: "reading the templates".into(),
        source: Box::new(source),
    })?;
    let reviewer = KubernetesReviewer::new(client.clone(), namespace, &cluster.workspace_account);
    let backend = KubernetesBackend::new(client, namespace, defaults, leader.leadership());
    let eviction_guard = backend.eviction_guard();
    let (watched, shown, renewing) = (store.clone(), store.clone(), leader.clone());
    Ok(Engine {
        identity,
        backend,
        store,
        leadership: leader.leadership(),
        reviewer: Box::new(|_| Ok(reviewer)),
        templates,
        public: Some(public),
        agents_at: AgentsAt::Open(agents),
        follower: Some(Box::new(move |driver| {
            Box::pin(async move {
                tokio::select! {
                    // The driver has ended, which is reported separately.
                    _ = followed.follow(&driver) => Ok("the watch over workspaces"),
                    () = shown.show(driver.snapshots()) => Ok("the status display of resources"),
                    () = shield.run(driver.snapshots()) => Ok("the eviction guard"),
                    () = follower.run() => Ok("the watch over templates"),
                    lost = renewing.renew_until_lost() => Err(lost.into()),
                }
            })
        })),
    })
}
