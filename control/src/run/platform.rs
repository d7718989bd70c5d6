//! Creates the platform on which the control plane runs: processes and a database file on one
//! machine, or pods and resources in a cluster.

use std::{fs, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::future::join3;
use kube::{Client, client::ClientBuilder};
use podling_proto::token;
use tokio::{net::TcpListener, time::timeout};
use tokio_util::sync::CancellationToken;
use tower::util::MapFutureLayer;

use super::{
    ControlPlaneError, Platform, owned_objects::OwnedObject, secrets::SharedSecret,
    standby::forward_until_elected,
};
use crate::{
    backend::{
        kubernetes::{KubernetesBackend, KubernetesReviewer},
        local::{LocalBackend, LocalConfig, LocalReviewer, control_socket},
    },
    config::{ControlConfig, KubernetesConfig},
    identity::{
        ControlIdentity, MissingSecrets,
        secret_file::{self, SecretFileError},
    },
    kubernetes::objects::PodDefaults,
    leader_election::{Leader, Leadership, LeaseCandidate},
    open_files::OpenFiles,
    server::{BoundListener, TcpAcceptor, bind_unix},
    store::{KubernetesStore, RedbStore},
    template::{TemplateFollower, TemplateSource, Templates},
};

/// Random bytes of the identity that this process has in leader election.
const IDENTITY_BYTES: usize = 12;
/// Time that the API server has to begin its answer to a request.
const API_TIMEOUT: Duration = Duration::from_secs(30);
/// Name of the ConfigMap with the CA certificate with which agents verify the control plane.
const CONTROL_CA: &str = "podling-ca";

pub(crate) async fn bind(address: SocketAddr) -> Result<Arc<TcpAcceptor>, ControlPlaneError> {
    let bound = TcpListener::bind(address).await;
    let bound = bound.map_err(|source| ControlPlaneError::Listen { address, source })?;
    Ok(Arc::new(TcpAcceptor::new(bound)))
}

/// Creates the platform for processes of this machine.
pub(super) async fn local(
    config: &ControlConfig,
    files: OpenFiles,
) -> Result<Platform<LocalBackend, LocalReviewer>, ControlPlaneError> {
    let control = config.data.join("control");
    secret_file::create_private_dir(&control)?;
    let store = RedbStore::open(&control.join("store.redb"))?;
    // Without the store, the directories of workspaces still show that there were some.
    let has_directories =
        || fs::read_dir(config.data.join("workspaces")).is_ok_and(|mut entries| entries.next().is_some());
    let has_workspaces = store.has_workspaces()? || has_directories();
    let missing = match has_workspaces && !config.create_missing_secrets {
        true => MissingSecrets::Refuse,
        false => MissingSecrets::Create,
    };
    let identity = Arc::new(ControlIdentity::open(&config.data, missing)?);
    Templates::load(&config.templates, &config.default_template)?.check()?;
    let templates = TemplateSource::Files {
        directories: config.templates.as_slice().into(),
        default: config.default_template.as_str().into(),
    };
    let backend = LocalBackend::open(LocalConfig {
        data: config.data.clone(),
        agent_command: config.agent_command.clone(),
        control_ca: identity.ca_file().to_owned(),
        agent_files: files,
    })?;
    let path = control_socket(&config.data);
    let agents = bind_unix(&path).map_err(|source| ControlPlaneError::ListenAgents { path, source })?;
    Ok(Platform {
        identity,
        backend,
        store: Arc::new(store),
        leadership: Leadership::permanent(),
        reviewer: Box::new(LocalReviewer::new),
        templates,
        public: bind(config.listen).await?,
        agents: BoundListener::Unix(agents),
        follower: None,
    })
}

/// Creates a client whose requests fail if the API server does not begin to answer. Responses may take
/// longer, because watches are responses that do not end.
async fn api_client() -> Result<Client, ControlPlaneError> {
    let connecting = ControlPlaneError::cluster("connect to the cluster");
    let config = kube::Config::infer().await.map_err(kube::Error::InferConfig);
    let builder = config.and_then(ClientBuilder::try_from).map_err(connecting)?;
    let limited = MapFutureLayer::new(|answer| async {
        timeout(API_TIMEOUT, answer).await.unwrap_or_else(|elapsed| Err(elapsed.into()))
    });
    Ok(builder.with_layer(&limited).build())
}

/// Creates the platform for pods once this replica is the leader. Until then it forwards
/// connections to the leader.
pub(crate) async fn kubernetes(
    config: &ControlConfig,
    kubernetes: &KubernetesConfig,
) -> Result<(Platform<KubernetesBackend, KubernetesReviewer>, Arc<Leader>), ControlPlaneError> {
    let client = api_client().await?;
    let namespace = kubernetes.namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned());
    let (public, agents) = (bind(config.listen).await?, bind(kubernetes.agents_listen).await?);
    let secret = Arc::new(SharedSecret::new(&client, &namespace));
    let leader = {
        let address = kubernetes.advertise.map(|address| address.to_string());
        let candidate =
            LeaseCandidate::new(client.clone(), &namespace, token::random(IDENTITY_BYTES), address);
        let (holder, for_agents) = (candidate.holder_address(), candidate.holder_address());
        let elected = CancellationToken::new();
        let acquiring = async {
            let leader = candidate.acquire().await;
            elected.cancel();
            leader
        };
        let standing_by = join3(
            acquiring,
            forward_until_elected(&public, holder, &elected),
            forward_until_elected(&agents, for_agents, &elected),
        );
        let remembering = async {
            secret.remember().await;
            std::future::pending().await
        };
        let (leader, (), ()) = tokio::select! {
            elected = standing_by => elected,
            never = remembering => never,
        };
        Arc::new(leader)
    };
    match as_leader(config, kubernetes, client, &namespace, &leader, secret, (public, agents)).await {
        Ok(platform) => Ok((platform, leader)),
        Err(error) => {
            // Another replica may succeed, for example because it remembers a secret that is lost.
            leader.release().await;
            Err(error)
        }
    }
}

/// Creates the platform for pods of a replica that is the leader.
async fn as_leader(
    config: &ControlConfig,
    kubernetes: &KubernetesConfig,
    client: Client,
    namespace: &str,
    leader: &Arc<Leader>,
    secret: Arc<SharedSecret>,
    (public, agents): (Arc<TcpAcceptor>, Arc<TcpAcceptor>),
) -> Result<Platform<KubernetesBackend, KubernetesReviewer>, ControlPlaneError> {
    let identity = Arc::new(secret.open(&config.data, config.create_missing_secrets).await?);
    let ca = fs::read_to_string(identity.ca_file()).map_err(|source| SecretFileError::Io {
        operation: "read",
        path: identity.ca_file().to_owned(),
        source,
    })?;
    let ca = OwnedObject::ca(&client, namespace, CONTROL_CA, &ca);
    let writing = format!("write the ConfigMap {CONTROL_CA} in namespace {namespace}");
    ca.apply().await.map_err(ControlPlaneError::cluster(writing))?;
    let budget = OwnedObject::disruption_budget(&client, namespace);
    let defaults = PodDefaults {
        agent_image: kubernetes.agent_image.clone(),
        control: kubernetes.agents_url.clone(),
        control_ca: CONTROL_CA.to_owned(),
        service_account: kubernetes.workspace_account.clone(),
    };
    let opened =
        TemplateFollower::open(&client, namespace, &config.default_template, leader.leadership()).await;
    let (follower, templates) = opened.map_err(ControlPlaneError::cluster("read the WorkspaceTemplates"))?;
    let lookup = follower.lookup();
    let store = KubernetesStore::new(client.clone(), namespace, leader.leadership(), lookup.clone());
    let store = Arc::new(store);
    let reviewer = KubernetesReviewer::new(client.clone(), namespace, &kubernetes.workspace_account);
    let backend = KubernetesBackend::new(client.clone(), namespace, defaults, leader.leadership(), lookup);
    let (eviction_guard, claims) = (backend.eviction_guard(), backend.volume_claim_watcher());
    let (claims_watched, claims_shown) = (claims.states(), claims.states());
    let (watched, shown, renewing) = (store.clone(), store.clone(), leader.clone());
    let leadership = leader.leadership();
    Ok(Platform {
        identity,
        backend,
        store,
        leadership: leader.leadership(),
        reviewer: Box::new(|_| Ok(reviewer)),
        templates: TemplateSource::Resources(templates),
        public,
        agents: BoundListener::Tcp(agents),
        follower: Some(Box::new(move |driver| {
            Box::pin(async move {
                tokio::select! {
                    // Fails only if the driver has ended, which its own task reports.
                    _ = watched.watch_resources(&driver, claims_watched) => Ok("the watch of Workspaces"),
                    () = shown.publish_status(driver.snapshots(), claims_shown) => {
                        Ok("the publisher of statuses")
                    }
                    () = claims.run(driver.snapshots()) => Ok("the watch of volume claims"),
                    () = ca.keep(&leadership) => Ok("the watch of the CA's ConfigMap"),
                    () = budget.keep(&leadership) => Ok("the watch of the PodDisruptionBudget"),
                    () = eviction_guard.run(driver.snapshots()) => Ok("the eviction guard"),
                    () = follower.run() => Ok("the watch of WorkspaceTemplates"),
                    () = secret.restore_when_damaged(&leadership) => Ok("the watch of the Secret"),
                    lost = renewing.renew_until_lost() => Err(lost.into()),
                }
            })
        })),
    })
}
