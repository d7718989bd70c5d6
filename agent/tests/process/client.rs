//! A client of the agent that speaks gRPC and plain HTTP over TLS, and pins the agent's
//! fingerprint.

use std::{convert::Infallible, path::Path, sync::Arc};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response,
    client::conn::{http1, http2},
};
use hyper_util::rt::TokioIo;
use podling_agent::tasks::ConnectionExecutor;
use podling_proto::{
    token::{SigningKey, TokenClaims},
    verb::Verbs,
};
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring::default_provider, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::net::UnixStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::codegen::http::Uri;

use crate::{agent::AgentProcess, control_plane};

/// An HTTP/2 connection to the agent.
pub(crate) struct AgentClient {
    sender: http2::SendRequest<tonic::body::Body>,
    /// Shared with all services of this client. The connection ends when the last clone is dropped.
    connection_guard: Arc<DropGuard>,
}

#[derive(Debug)]
struct PinnedCertificateVerifier {
    fingerprint: String,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedCertificateVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let digest = ring::digest::digest(&ring::digest::SHA256, certificate);
        let fingerprint: String = digest.as_ref().iter().map(|b| format!("{b:02x}")).collect();
        if fingerprint == self.fingerprint {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::General("the certificate has another fingerprint".into()))
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not supported".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Returns a TLS connector that pins `fingerprint` and offers one application protocol (ALPN).
pub(crate) fn connector(fingerprint: &str, protocol: &str) -> TlsConnector {
    let provider = Arc::new(default_provider());
    let verifier = PinnedCertificateVerifier { fingerprint: fingerprint.into(), provider: provider.clone() };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    TlsConnector::from(Arc::new(config))
}

pub(crate) async fn connect(socket: &Path, tls: &TlsConnector) -> std::io::Result<TlsStream<UnixStream>> {
    let name = ServerName::try_from("podling-agent").expect("name");
    tls.connect(name, UnixStream::connect(socket).await?).await
}

impl AgentClient {
    pub(crate) async fn connect(agent: &AgentProcess) -> Self {
        let info = agent.info().await;
        let io = connect(&agent.path("agent.sock"), &connector(&info.fingerprint, "h2")).await.expect("TLS");
        let cancellation = CancellationToken::new();
        let spawner = ConnectionExecutor::new(cancellation.clone());
        let (sender, connection) = http2::handshake(spawner.clone(), TokioIo::new(io)).await.expect("HTTP/2");
        hyper::rt::Executor::execute(&spawner, async move { drop(connection.await) });
        Self { sender, connection_guard: Arc::new(cancellation.drop_guard()) }
    }

    /// Returns a service for tonic's generated clients.
    pub(crate) fn service(
        &self,
    ) -> impl tower::Service<
        http::Request<tonic::body::Body>,
        Response = Response<hyper::body::Incoming>,
        Error = hyper::Error,
        Future: Send,
    > + Clone
    + Send
    + use<> {
        let (sender, guard) = (self.sender.clone(), self.connection_guard.clone());
        tower::service_fn(move |request| {
            let (mut sender, guard) = (sender.clone(), guard.clone());
            async move {
                let response = sender.send_request(request).await;
                drop(guard);
                response
            }
        })
    }

    pub(crate) fn origin() -> Uri {
        Uri::from_static("https://podling-agent")
    }
}

/// Sends a request over HTTP/1.1. Returns the status, the content type followed by the gRPC status,
/// and the body.
pub(crate) async fn http1(agent: &AgentProcess, request: Request<Full<Bytes>>) -> (u16, String, Bytes) {
    let info = agent.info().await;
    let io =
        connect(&agent.path("agent.sock"), &connector(&info.fingerprint, "http/1.1")).await.expect("TLS");
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.expect("HTTP/1.1");
    let exchange = async {
        let response = sender.send_request(request).await.expect("a response");
        let status = response.status().as_u16();
        let header =
            |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
        // A gRPC error without a message carries its status in the headers.
        let content_type = format!("{} {}", header("content-type"), header("grpc-status"));
        (
            status,
            content_type.trim().to_owned(),
            response.into_body().collect().await.expect("body").to_bytes(),
        )
    };
    tokio::select! {
        response = exchange => response,
        _ = async { drop(connection.await); std::future::pending::<Infallible>().await } => unreachable!(),
    }
}

/// Builds a GET request, with a bearer token if `token` is set.
pub(crate) fn get(path: &str, token: Option<&str>) -> Request<Full<Bytes>> {
    let mut built = Request::new(Full::new(Bytes::new()));
    *built.uri_mut() = path.parse().expect("path");
    built.headers_mut().insert("host", "podling-agent".parse().expect("header"));
    if let Some(token) = token {
        built.headers_mut().insert("authorization", format!("Bearer {token}").parse().expect("header"));
    }
    built
}

/// Builds a gRPC request with a bearer token.
pub(crate) fn with_token<T>(message: T, token: &str) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("header"));
    request
}

/// Returns a valid token with these verbs, signed by `key`.
pub(crate) fn token(key: &SigningKey, verbs: &str) -> String {
    let claims: TokenClaims = control_plane::claims(verbs.parse::<Verbs>().expect("verbs"));
    key.sign(&claims)
}
