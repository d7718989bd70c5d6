//! Reaches an agent: TLS 1.3 to the very certificate it registered, and HTTP/2 over it.
//!
//! Nothing is sent before the certificate was compared: a program that took the agent's place learns nothing.

use std::{
    error::Error,
    future::{Future, poll_fn},
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use hyper::{
    body::Body,
    client::conn::http2::{Builder, SendRequest},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use crate::{
    identity::certificate::provider,
    server::{ConnectionTasks, limits},
    snapshot::{AgentAddress, AgentView, Fingerprint},
    unix_socket,
};

/// For the connection, TLS and HTTP/2 to be there, whoever makes it. An agent that is alive needs some milliseconds.
pub(crate) const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// The name in an agent's certificate, and the authority of every request to one.
pub(crate) const AGENT_NAME: &str = "podling-agent";
/// Largest frame an agent may send: fewer of them for bulk, and still soon over for whoever waits behind it (64 KiB take
/// about 60 µs).
const MAX_FRAME_BYTES: u32 = 64 * 1024;

/// Why an agent cannot be reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentDialError {
    /// Nobody there, or TLS failed; a false certificate is among the reasons.
    #[error("connecting: {0}")]
    Connect(#[from] io::Error),
    /// It does not speak HTTP/2.
    #[error("HTTP/2: {0}")]
    Http(#[from] hyper::Error),
    /// It does not answer.
    #[error("no answer within {} s", DIAL_TIMEOUT.as_secs())]
    Timeout,
    /// TLS cannot be set up on our side.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// All connections it may have are full.
    #[error("{0} streams to one agent")]
    Full(usize),
}

/// An open connection for requests with this body.
pub(crate) struct AgentChannel<B> {
    pub(crate) sender: SendRequest<B>,
    /// How many streams the agent takes on it, as far as it has said so.
    pub(crate) max_streams: Arc<AtomicUsize>,
}

/// A connection to this agent. Takes as long as it takes: whoever asks sets the limit.
pub(crate) async fn dial<B>(
    agent: &AgentView,
    tasks: &ConnectionTasks,
) -> Result<AgentChannel<B>, AgentDialError>
where
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + Unpin + 'static,
{
    match &agent.address {
        AgentAddress::Unix(path) => secure(unix_socket::connect(path).await?, agent.fingerprint, tasks).await,
        AgentAddress::Tcp(address) => {
            let tcp = TcpStream::connect(address).await?;
            tcp.set_nodelay(true)?;
            secure(tcp, agent.fingerprint, tasks).await
        }
    }
}

async fn secure<I, B>(
    io: I,
    fingerprint: Fingerprint,
    tasks: &ConnectionTasks,
) -> Result<AgentChannel<B>, AgentDialError>
where
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + Unpin + 'static,
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let tls = TlsConnector::from(Arc::new(client_config(fingerprint)?));
    let io = tls.connect(ServerName::try_from(AGENT_NAME).map_err(io::Error::other)?, io).await?;
    let (sender, mut connection) = Builder::new(tasks.clone())
        .timer(TokioTimer::new())
        .initial_stream_window_size(limits::STREAM_WINDOW)
        .initial_connection_window_size(limits::CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME_BYTES)
        .keep_alive_interval(limits::KEEP_ALIVE)
        .keep_alive_timeout(limits::KEEP_ALIVE_TIMEOUT)
        .handshake(TokioIo::new(io))
        .await?;
    let max_streams = Arc::new(AtomicUsize::new(connection.current_max_send_streams()));
    let said = max_streams.clone();
    tasks.0.spawn(async move {
        // Polled for every request, so the number is as new as the last one.
        let ended = poll_fn(|cx| {
            let ended = Pin::new(&mut connection).poll(cx);
            said.store(connection.current_max_send_streams(), Relaxed);
            ended
        });
        if let Err(error) = ended.await {
            tracing::debug!(%error, "the connection to an agent ended");
        }
    });
    Ok(AgentChannel { sender, max_streams })
}

fn client_config(fingerprint: Fingerprint) -> Result<ClientConfig, rustls::Error> {
    let provider = provider();
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedCertVerifier { fingerprint, provider }))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would not show the certificate again.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Accepts one certificate: the one that was registered over the agent's own authenticated stream.
#[derive(Debug)]
struct PinnedCertVerifier {
    fingerprint: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedCertVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let shown = Fingerprint::of(end_entity);
        if shown == self.fingerprint {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::General(format!(
            "the certificate {shown} is not {}, which the agent registered",
            self.fingerprint
        )))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
