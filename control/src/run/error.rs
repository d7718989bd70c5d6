//! Errors that prevent the control plane from running.

use std::{io, net::SocketAddr, path::PathBuf};

use crate::{
    backend::BackendError,
    backup_store::OpenStoreError,
    driver::BackendStreamEnded,
    identity::{ControlIdentityError, SecretFileError},
    lease::LeadershipLost,
    store::StoreError,
    template::TemplateError,
};

/// Why the control plane does not start, or has stopped.
#[derive(Debug, thiserror::Error)]
pub enum ControlPlaneError {
    /// Another control plane uses the data directory.
    #[error(
        "the data directory {data} is in use by another control plane (process {pid}): use that one, stop \
         it with `podling down --data {data}`, or choose another directory with --data",
        data = data.display()
    )]
    InUse {
        data: PathBuf,
        /// The process of the other control plane.
        pid: String,
    },
    /// Other users can access the data directory, and it holds foreign files.
    #[error(
        "the data directory {data} is accessible to others (mode {mode:o}) and contains {holds}, which is \
         not Podling's: choose another directory with --data, or run `chmod 700` on it if only you use it",
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
    /// A request to the cluster failed.
    #[error("{operation}")]
    Cluster {
        operation: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("the certificate of --tls-cert and --tls-key is not valid")]
    Tls(#[source] rustls::Error),
    #[error("listening on {address}; choose another address with --listen, or port 0 for a free port")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("listening for agents at {path}", path = path.display())]
    ListenAgents { path: PathBuf, source: io::Error },
    #[error("describing the services")]
    Reflection(#[source] tonic_reflection::server::Error),
    #[error("the driver ended")]
    Driver(#[from] BackendStreamEnded),
    /// A task that runs as long as the control plane has ended.
    #[error("{0} ended unexpectedly; restart the control plane (workspaces keep running meanwhile)")]
    Ended(&'static str),
}
