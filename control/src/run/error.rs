//! Errors that prevent the control plane from running.

use std::{collections::BTreeMap, io, net::SocketAddr, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    backend::BackendError,
    backup_store::OpenStoreError,
    driver::BackendStreamEnded,
    identity::{ControlIdentityError, LONG_LIVED_SECRETS, SecretFileError, consequences},
    leader_election::LeadershipLost,
    store::StoreError,
    template::TemplateError,
};

/// Long-lived secrets are missing in the Secret that the replicas share, although workspaces exist,
/// or they are unusable.
#[derive(Debug, thiserror::Error)]
#[error(
    "the Secret podling-control in namespace {namespace} {problem}, but workspaces and tokens depend on it; \
     restore it from a backup and restart the control plane. If there is no backup, request new secrets: \
     `{commands}`. Then {consequences}",
    problem = self.problem(), commands = self.commands(), consequences = self.consequences()
)]
pub struct LostSecret {
    pub namespace: String,
    pub loss: SecretLoss,
}

/// Fault of the Secret. Lists contain files of the identity, whose names are the keys of
/// the Secret.
#[derive(Debug)]
pub enum SecretLoss {
    /// The Secret lacks these keys, or does not exist.
    Missing { files: Vec<&'static str>, has_secret: bool },
    /// No replica has a usable value of these keys.
    Unusable {
        /// Each with a phrase that says what is wrong with its content.
        files: BTreeMap<&'static str, &'static str>,
    },
}

impl LostSecret {
    fn problem(&self) -> String {
        match &self.loss {
            SecretLoss::Missing { has_secret: false, .. } => "does not exist".to_owned(),
            SecretLoss::Missing { files, .. } => {
                let keys: Vec<_> = files.iter().map(|file| secret_key(file)).collect();
                format!("lacks {}", keys.join(", "))
            }
            SecretLoss::Unusable { files } => format!("is damaged ({})", describe_damage(files)),
        }
    }

    fn commands(&self) -> String {
        let kubectl = format!("kubectl -n {}", self.namespace);
        let annotate =
            format!("{kubectl} annotate secret podling-control podling.dev/create-missing-secrets=true");
        let restart = format!("{kubectl} rollout restart deployment/podling-control");
        match &self.loss {
            SecretLoss::Missing { has_secret: false, .. } => {
                format!("{kubectl} create secret generic podling-control && {annotate} && {restart}")
            }
            SecretLoss::Missing { .. } => format!("{annotate} && {restart}"),
            SecretLoss::Unusable { files } => {
                let removal =
                    |file: &&str| json!({"op": "remove", "path": format!("/data/{}", secret_key(file))});
                let patch = Value::from_iter(files.keys().map(removal));
                let remove = format!("{kubectl} patch secret podling-control --type=json -p '{patch}'");
                format!("{annotate} && {remove} && {restart}")
            }
        }
    }

    fn consequences(&self) -> String {
        let lost: Vec<_> = match &self.loss {
            SecretLoss::Missing { files, .. } => files.clone(),
            SecretLoss::Unusable { files } => {
                LONG_LIVED_SECRETS.into_iter().filter(|name| files.contains_key(name)).collect()
            }
        };
        consequences(&lost)
    }
}

/// Says for each file of the identity what is wrong with it, by its key in the Secret.
pub(super) fn describe_damage(files: &BTreeMap<&str, &str>) -> String {
    let problems: Vec<_> = files.iter().map(|(file, is)| format!("{} {is}", secret_key(file))).collect();
    problems.join(", ")
}

/// Returns the Secret's key for a file, which is the file's name without directories.
pub(super) fn secret_key(file: &str) -> &str {
    file.rsplit('/').next().unwrap_or(file)
}

impl ControlPlaneError {
    /// Returns a function that converts the failure of a request to the cluster. `operation`
    /// completes "cannot …" in the message.
    pub(super) fn cluster(operation: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let operation = operation.into();
        |source| Self::Cluster { operation, source: Box::new(source) }
    }
}

/// Errors that prevent a start of the control plane, or that have stopped it.
#[derive(Debug, thiserror::Error)]
pub enum ControlPlaneError {
    /// Another control plane uses the data directory.
    #[error(
        "the data directory {data} is in use by another control plane (process {pid}); use that one, stop \
         it with `podling down --data {data}`, or choose another directory with --data",
        data = data.display()
    )]
    InUse {
        data: PathBuf,
        /// Process id in the lock file of the other control plane.
        pid: String,
    },
    /// Other users can access the data directory, and it contains foreign files.
    #[error(
        "other users can access the data directory {data} (mode {mode:o}), which contains {holds}, not \
         created by Podling; choose another directory with --data, or run `chmod 700 {data}` if only you \
         use it",
        data = data.display()
    )]
    Shared { data: PathBuf, mode: u32, holds: String },
    #[error(transparent)]
    File(#[from] SecretFileError),
    #[error(transparent)]
    Identity(#[from] ControlIdentityError),
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Backups(#[from] OpenStoreError),
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// Another replica has become the leader.
    #[error(transparent)]
    LeadershipLost(#[from] LeadershipLost),
    /// Replicas of this control plane share secrets that are lost.
    #[error(transparent)]
    LostSecret(#[from] LostSecret),
    /// A request to the cluster failed.
    #[error("cannot {operation}")]
    Cluster {
        /// Completes "cannot …" in the message.
        operation: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("cannot use the certificate of --tls-cert with the key of --tls-key")]
    Tls(#[source] rustls::Error),
    #[error(
        "cannot listen on {address}; choose another address with --listen (port 0 takes a free port) or, for \
         agents, with --agents-listen"
    )]
    Listen { address: SocketAddr, source: io::Error },
    #[error("cannot listen for agents at {path}", path = path.display())]
    ListenAgents { path: PathBuf, source: io::Error },
    #[error("cannot describe the gRPC services for reflection")]
    Reflection(#[source] tonic_reflection::server::Error),
    #[error("the driver ended; restart the control plane (workspaces keep running meanwhile)")]
    Driver(#[from] BackendStreamEnded),
    /// A task ended, although it should run until the control plane shuts down. Holds its name.
    #[error("{0} ended unexpectedly; restart the control plane (workspaces keep running meanwhile)")]
    Ended(&'static str),
}
