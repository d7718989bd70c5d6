//! Errors that prevent the control plane from running.

use std::{io, net::SocketAddr, path::PathBuf};

use crate::{
    backend::BackendError,
    backup_store::OpenStoreError,
    driver::BackendStreamEnded,
    identity::{ControlIdentityError, SecretFileError, consequences},
    leader_election::LeadershipLost,
    store::StoreError,
    template::TemplateError,
};

/// Long-lived secrets are missing in the Secret that the replicas share, although workspaces exist.
#[derive(Debug, thiserror::Error)]
#[error(
    "the Secret podling-control in namespace {namespace} {problem}, but workspaces depend on it; restore it \
     from a backup and restart the control plane. If there is no backup, request new secrets: `{commands}`. \
     Then {consequences}",
    problem = self.problem(), commands = self.commands(), consequences = consequences(.files)
)]
pub struct LostSecret {
    pub namespace: String,
    /// Whether there is a Secret of this name.
    pub exists: bool,
    /// The missing keys of the Secret.
    pub keys: Vec<&'static str>,
    /// The files that the missing keys stand for.
    pub files: Vec<&'static str>,
}

impl LostSecret {
    fn problem(&self) -> String {
        if self.exists { format!("lacks {}", self.keys.join(", ")) } else { "does not exist".to_owned() }
    }

    fn commands(&self) -> String {
        let kubectl = format!("kubectl -n {}", self.namespace);
        let annotate = format!(
            "{kubectl} annotate secret podling-control podling.dev/create-missing-secrets=true && {kubectl} \
             rollout restart deployment/podling-control"
        );
        match self.exists {
            true => annotate,
            false => format!("{kubectl} create secret generic podling-control && {annotate}"),
        }
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
