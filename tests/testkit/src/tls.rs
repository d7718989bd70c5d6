//! Certificates for tests: an authority, server configurations with its certificates, and client
//! configurations that pin a certificate.

use std::{net::SocketAddr, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use ring::digest::{SHA256, digest};
use rustls::{
    ClientConfig, ConfigBuilder, ConfigSide, DigitallySignedStruct, Error, RootCertStore, ServerConfig,
    SignatureScheme, WantsVerifier, WantsVersions,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring::default_provider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
};
use tokio::io::copy_bidirectional;
use tokio_rustls::TlsAcceptor;

use crate::{
    net::{BoxedStream, DialAddress, TestServer},
    tree::hex,
};

/// A certificate authority that only tests trust.
#[derive(Debug)]
pub struct CertificateAuthority {
    issuer: Issuer<'static, KeyPair>,
    /// Certificate of the authority, in PEM.
    pub pem: String,
}

/// A proxy that terminates TLS in front of a plaintext server.
#[derive(Debug)]
pub struct TlsTerminator {
    /// Address that the proxy listens on, with the server's IP address and a free port.
    pub address: SocketAddr,
    _server: TestServer,
}

/// Validity period of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// Valid from 1975 to 4096.
    Current,
    /// Valid in the year 2000 only.
    Expired,
}

impl CertificateAuthority {
    /// Generates an authority with this common name.
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Creates a server configuration for HTTP/2 with a certificate for `name`.
    pub fn server(&self, name: &str, validity: Validity) -> Arc<ServerConfig> {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new([name.to_owned()]).expect("a name");
        if validity == Validity::Expired {
            params.not_before = rcgen::date_time_ymd(2000, 1, 1);
            params.not_after = rcgen::date_time_ymd(2001, 1, 1);
        }
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        server_config(certificate.der().clone(), &key)
    }
}

/// Creates a self-signed certificate for `name`, and its key.
pub fn self_signed(name: &str) -> (rcgen::Certificate, KeyPair) {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new([name.to_owned()]).expect("a name");
    (params.self_signed(&key).expect("a certificate"), key)
}

/// Creates a server configuration for HTTP/2 with this certificate.
pub fn server_config(certificate: CertificateDer<'static>, key: &KeyPair) -> Arc<ServerConfig> {
    let mut config = with_versions(ServerConfig::builder_with_provider(provider()))
        .with_no_client_auth()
        .with_single_cert(vec![certificate], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
        .expect("a server");
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

impl TlsTerminator {
    /// Starts a proxy in front of the server at `upstream`. Does not negotiate an application
    /// protocol.
    pub async fn start(upstream: SocketAddr, config: &ServerConfig) -> Self {
        let mut config = config.clone();
        config.alpn_protocols.clear();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listen = DialAddress::Tcp((upstream.ip(), 0).into());
        let forward = move |near| forward_connection(acceptor.clone(), near, DialAddress::Tcp(upstream));
        let server = TestServer::start(&listen, forward).await;
        Self { address: server.address.tcp(), _server: server }
    }
}

/// Forwards until either side closes the connection, then closes the other side.
async fn forward_connection(acceptor: TlsAcceptor, near: BoxedStream, upstream: DialAddress) {
    let Ok(mut near) = acceptor.accept(near).await else { return };
    let Ok(mut far) = upstream.connect().await else { return };
    let _ = copy_bidirectional(&mut near, &mut far).await;
}

/// Creates a client configuration for HTTP/2 that trusts only this authority.
pub fn trusting(authority: CertificateDer<'static>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(authority).expect("a certificate");
    let mut config = with_versions(ClientConfig::builder_with_provider(provider()))
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// Creates a client configuration for HTTP/2 that accepts only the certificate with this
/// [`fingerprint`], or any certificate if it is `None`.
pub fn pinned(fingerprint: Option<&str>) -> ClientConfig {
    let mut config = with_versions(ClientConfig::builder_with_provider(provider()))
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedCertificate {
            fingerprint: fingerprint.map(str::to_owned),
            provider: provider(),
        }))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// Returns the SHA-256 digest of a DER certificate in lower-case hex.
pub fn fingerprint(der: &[u8]) -> String {
    hex(digest(&SHA256, der).as_ref())
}

fn with_versions<S: ConfigSide>(builder: ConfigBuilder<S, WantsVersions>) -> ConfigBuilder<S, WantsVerifier> {
    builder.with_safe_default_protocol_versions().expect("versions")
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(default_provider())
}

#[derive(Debug)]
struct PinnedCertificate {
    fingerprint: Option<String>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedCertificate {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.fingerprint {
            Some(pin) if *pin != fingerprint(certificate) => {
                Err(Error::General("the certificate does not have the pinned fingerprint".into()))
            }
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
