//! The server: one TLS listener for gRPC, gRPC-web and plain HTTP. Independent of the services.

pub mod auth;
pub mod calls;
pub mod connection;
pub mod listener;
pub mod router;

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use axum::Router;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio::{task::JoinSet, time::timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use self::{connection::ClientConnections, listener::AgentListener};
use crate::{
    metrics::AgentMetrics,
    util::{hex, sha256},
};

/// DNS names in the certificate.
const NAMES: [&str; 2] = ["podling-agent", "localhost"];
/// Number of TLS session tickets. There are none, because they would need state for unauthenticated
/// connections.
const TICKETS: usize = 0;

/// Accepts connections until shutdown, then drains them.
pub struct Server {
    listener: AgentListener,
    tls: TlsAcceptor,
    connections: ClientConnections,
    serving: JoinSet<()>,
}

impl Server {
    pub fn new(listener: AgentListener, tls: rustls::ServerConfig, metrics: AgentMetrics) -> Self {
        let tls = TlsAcceptor::from(Arc::new(tls));
        Self { listener, tls, connections: ClientConnections::new(metrics), serving: JoinSet::new() }
    }

    /// Accepts connections until the future is dropped. Returns only if the listener has failed.
    /// After `drain` is cancelled, open connections accept no more calls, and open calls continue.
    pub async fn run(&mut self, router: Router, drain: &CancellationToken) -> io::Result<Infallible> {
        loop {
            let io = tokio::select! {
                biased;
                // Removes connections that have ended. A panic ends only its own connection.
                Some(_) = self.serving.join_next() => continue,
                io = self.listener.accept() => io?,
            };
            if let Some(permit) = self.connections.try_acquire() {
                self.serving.spawn(permit.serve(io, self.tls.clone(), router.clone(), drain.clone()));
            }
        }
    }

    /// Closes the listener, waits up to `deadline` until all connections have ended, then closes
    /// the remaining ones.
    pub async fn drained(self, deadline: Duration) {
        let Self { listener, mut serving, .. } = self;
        drop(listener);
        let all_ended = async { while serving.join_next().await.is_some() {} };
        if timeout(deadline, all_ended).await.is_err() {
            tracing::info!(open = serving.len(), "closing connections whose calls did not end in time");
        }
        serving.shutdown().await;
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("listener", &self.listener).finish_non_exhaustive()
    }
}

/// Why the key or certificate could not be created.
#[derive(Debug, thiserror::Error)]
pub enum AgentIdentityError {
    #[error("cannot generate the agent's certificate")]
    Make(#[from] rcgen::Error),
    /// rustls rejected the certificate.
    #[error("cannot use the agent's certificate")]
    Use(#[from] rustls::Error),
}

pub struct AgentIdentity {
    certificate: CertificateDer<'static>,
    key: PrivatePkcs8KeyDer<'static>,
}

impl AgentIdentity {
    /// Creates a new key and a self-signed certificate.
    pub fn generate() -> Result<Self, AgentIdentityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = CertificateParams::new(NAMES.map(str::to_owned))?.self_signed(&key)?;
        Ok(Self { certificate: certificate.der().clone(), key: key.serialize_der().into() })
    }

    /// Returns the SHA-256 of the certificate in DER, lower-case hex.
    pub fn fingerprint(&self) -> String {
        hex(&sha256(&self.certificate))
    }

    /// Returns the TLS configuration with this certificate, for TLS 1.3 and HTTP/2 or HTTP/1.1.
    pub fn server_config(&self) -> Result<ServerConfig, AgentIdentityError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivateKeyDer::Pkcs8(self.key.clone_key());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.clone()], key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.send_tls13_tickets = TICKETS;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(config)
    }
}

impl std::fmt::Debug for AgentIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentIdentity").field("fingerprint", &self.fingerprint()).finish_non_exhaustive()
    }
}
