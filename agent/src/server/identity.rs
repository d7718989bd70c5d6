//! The agent's key and certificate. They are created at each start and never written to disk.
//! Clients pin the certificate by its fingerprint.

use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
};

/// DNS names in the certificate.
const NAMES: [&str; 2] = ["podling-agent", "localhost"];
/// Number of TLS session tickets. There are none, because they would need state for unauthenticated
/// connections.
const TICKETS: usize = 0;

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
        let digest = ring::digest::digest(&ring::digest::SHA256, &self.certificate);
        digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
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
