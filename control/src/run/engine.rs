//! What runs workspaces and keeps their records: processes and a file on one machine, pods and resources in a cluster.

use std::{future::pending, net::SocketAddr, path::PathBuf, sync::Arc};

use futures_util::future::BoxFuture;
use kube::Client;
use podling_proto::token;
use tokio::{net::TcpListener, sync::watch};

use super::{RunError, secrets, standby::pass_on};
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

/// Of what one run of a control plane is called.
const IDENTITY_BYTES: usize = 12;
/// The ConfigMap with what agents check the control plane's certificate against.
const CONTROL_CA: &str = "podling-ca";

/// What differs between one machine and a cluster.
pub(super) struct Engine<B, R> {
    pub(super) identity: Arc<ControlIdentity>,
    pub(super) backend: B,
    pub(super) store: Arc<dyn Store>,
    /// For how long it is for us to decide.
    pub(super) leadership: Arc<Leadership>,
    pub(super) reviewer: Box<dyn FnOnce(Snapshots) -> Result<R, BackendError> + Send>,
    pub(super) templates: watch::Receiver<Arc<Templates>>,
    /// The public door, if it is open already.
    pub(super) public: Option<TcpListener>,
    pub(super) agents_at: AgentsAt,
    /// Follows what others change, as long as the control plane runs.
    pub(super) follower: Option<Follower>,
}

pub(super) type Follower =
    Box<dyn FnOnce(DriverHandle) -> BoxFuture<'static, Result<&'static str, RunError>> + Send>;

/// Where agents dial.
pub(super) enum AgentsAt {
    Socket(PathBuf),
    Open(TcpListener),
}

/// Opens a door.
pub(super) async fn bind(address: SocketAddr) -> Result<TcpListener, RunError> {
    TcpListener::bind(address).await.map_err(|source| RunError::Listen { address, source })
}

/// Processes of this machine.
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
        // They stay as they are.
        templates: watch::channel(Arc::new(templates)).1,
        public: None,
        agents_at: AgentsAt::Socket(control_socket(&config.data)),
        follower: None,
    })
}

/// Pods, once it is for us to decide about them. Until then whoever comes is passed on to the one that does.
pub(super) async fn kubernetes(
    config: &Config,
    cluster: &Cluster,
) -> Result<(Engine<KubernetesBackend, KubernetesReviewer>, Arc<Leader>), RunError> {
    let failed =
        |source| RunError::Cluster { operation: "finding the cluster".into(), source: Box::new(source) };
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
                tokio::join!(pass_on(&public, holder), pass_on(&agents, for_agents));
                pending().await
            } => never,
        }
    };
    let engine = deciding(config, cluster, client, &namespace, &leader, (public, agents)).await?;
    Ok((engine, leader))
}

/// The same, now that it is for us.
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
                    // The driver has gone, which is said by itself.
                    _ = watched.watch_resources(&driver) => Ok("the watch over workspaces"),
                    () = shown.show(driver.snapshots()) => Ok("what resources show"),
                    () = eviction_guard.run(driver.snapshots()) => Ok("what autoscalers are told"),
                    () = follower.run() => Ok("the watch over templates"),
                    lost = renewing.renew_until_lost() => Err(lost.into()),
                }
            })
        })),
    })
}
