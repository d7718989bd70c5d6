//! Connects to an agent by HTTP/2 over TLS 1.3, pinned to the certificate that the agent
//! registered.
//!
//! The certificate is compared before any request is sent, so that a program that impersonates the
//! agent receives no token.

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
    ClientConfig,
    client::Resumption,
    pki_types::{CertificateDer, ServerName},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use crate::{
    identity::certificate::provider,
    pinned_certificate::PinnedCertificateVerifier,
    server::{self, ConnectionTasks, connect_unix},
    snapshot::{AgentAddress, AgentView, Fingerprint},
};

/// Time for connecting, TLS and HTTP/2 together; callers enforce it. A healthy agent needs
/// milliseconds.
pub(crate) const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// The name in an agent's certificate, and the authority of every request to an agent.
pub(crate) const AGENT_NAME: &str = "podling-agent";
/// Largest frame that an agent may send, in bytes. Large enough for bulk data in few frames, and
/// small enough that other streams wait only about 60 µs for one frame.
const MAX_FRAME_BYTES: u32 = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentDialError {
    /// Connecting or TLS failed, for example because of an unexpected certificate.
    #[error("cannot connect: {0}")]
    Connect(#[from] io::Error),
    #[error("the HTTP/2 handshake failed: {0}")]
    Http(#[from] hyper::Error),
    #[error("no response within {} s", DIAL_TIMEOUT.as_secs())]
    Timeout,
    /// The TLS client cannot be configured.
    #[error("cannot configure TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// All connections have their maximum of streams. Holds the total number of streams.
    #[error("all {0} streams to this agent are in use")]
    Full(usize),
}

/// An open connection to an agent, for requests with bodies of type `B`.
#[derive(Debug)]
pub(crate) struct AgentChannel<B> {
    pub(crate) sender: SendRequest<B>,
    /// Concurrent streams that the agent allows, as it last announced.
    pub(crate) max_streams: Arc<AtomicUsize>,
}

/// Connects to the agent. Has no timeout of its own: callers apply [`DIAL_TIMEOUT`].
pub(crate) async fn dial<B>(
    agent: &AgentView,
    tasks: &ConnectionTasks,
) -> Result<AgentChannel<B>, AgentDialError>
where
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + Unpin + 'static,
{
    match &agent.address {
        AgentAddress::Unix(path) => secure(connect_unix(path).await?, agent.fingerprint, tasks).await,
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
        .initial_stream_window_size(server::STREAM_WINDOW)
        .initial_connection_window_size(server::CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME_BYTES)
        .keep_alive_interval(server::KEEP_ALIVE)
        .keep_alive_timeout(server::KEEP_ALIVE_TIMEOUT)
        .handshake(TokioIo::new(io))
        .await?;
    let max_streams = Arc::new(AtomicUsize::new(connection.current_max_send_streams()));
    let latest = max_streams.clone();
    tasks.0.spawn(async move {
        // The connection is polled for every request, so the number is up to date.
        let ended = poll_fn(|cx| {
            let ended = Pin::new(&mut connection).poll(cx);
            latest.store(connection.current_max_send_streams(), Relaxed);
            ended
        });
        if let Err(error) = ended.await {
            tracing::debug!(%error, "connection to agent ended");
        }
    });
    Ok(AgentChannel { sender, max_streams })
}

/// Trusts exactly the certificate with the fingerprint that the agent registered over its
/// authenticated stream.
fn client_config(fingerprint: Fingerprint) -> Result<ClientConfig, rustls::Error> {
    let provider = provider();
    let verifier = PinnedCertificateVerifier::new(provider.clone(), move |shown: &CertificateDer<'_>| {
        match Fingerprint::of(shown) {
            shown if shown == fingerprint => Ok(()),
            shown => Err(rustls::Error::General(format!(
                "the certificate's fingerprint is {shown}, but the agent registered {fingerprint}"
            ))),
        }
    });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would not send the certificate again.
    config.resumption = Resumption::disabled();
    Ok(config)
}
