//! Why the control plane does not run, for whoever started it.

use std::{io, net::SocketAddr, path::PathBuf};

use crate::{
    backend::BackendError,
    backup_store::OpenStoreError,
    driver::BackendGone,
    identity::{ControlIdentityError, SecretFileError},
    lease::Lost,
    store::StoreError,
    template::TemplateError,
};

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
    File(#[from] SecretFileError),
    /// Tokens, keys, certificates.
    #[error(transparent)]
    Identity(#[from] ControlIdentityError),
    /// A template.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// What is stored.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Where archives are kept.
    #[error(transparent)]
    Backups(#[from] OpenStoreError),
    /// What runs workspaces.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// Another control plane decides by now.
    #[error(transparent)]
    LeadershipLost(#[from] LeadershipLost),
    /// The cluster.
    #[error("{operation}")]
    Cluster {
        /// What was tried.
        operation: String,
        /// Why not.
        #[source]
        source: Box<kube::Error>,
    },
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
