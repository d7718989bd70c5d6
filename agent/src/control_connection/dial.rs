//! Dials the control plane and verifies its certificate before sending anything. Independent of the
//! protocol above HTTP/2.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hyper::{client::conn::http2, rt::Executor as _};
use hyper_util::rt::{TokioIo, TokioTimer};
use podling_proto::procfs::SocketPath;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use crate::{
    config::{ControlAddress, ControlEndpoint},
    tasks::ConnectionExecutor,
};

/// Name in the control plane's certificate, independent of its address.
const SERVER_NAME: &str = "podling-control";
/// Time limit for connecting and for the TLS handshake together.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval of HTTP/2 pings on a silent connection.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// Time without an answer to a ping after which the connection is closed.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Reason why dialling the control plane failed.
#[derive(Debug, thiserror::Error)]
pub enum ControlDialError {
    /// A CA or credential file cannot be read.
    #[error("cannot read {path}")]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{0} contains no usable CA certificate")]
    Ca(PathBuf),
    #[error("cannot connect to {to}")]
    Connect {
        to: String,
        #[source]
        source: io::Error,
    },
    /// The TLS handshake failed. Nothing was sent to the peer.
    #[error("cannot verify that {to} is the control plane")]
    Unproven {
        to: String,
        #[source]
        source: io::Error,
    },
    #[error("connecting to {0} took longer than {DIAL_TIMEOUT:?}")]
    Timeout(String),
    #[error("the HTTP/2 handshake failed")]
    Http(#[source] hyper::Error),
}

/// Sends requests over one connection.
pub type RequestSender = http2::SendRequest<tonic::body::Body>;

/// Connects and verifies the certificate. The connection's background tasks end when `life` is
/// cancelled.
pub async fn dial(
    control: &ControlEndpoint,
    life: CancellationToken,
) -> Result<RequestSender, ControlDialError> {
    let to = control.address.to_string();
    let tasks = ConnectionExecutor::new(life);
    let tls = TlsConnector::from(Arc::new(client_config(&control.ca)?));
    let io =
        timeout(DIAL_TIMEOUT, connect(control, tls)).await.map_err(|_| ControlDialError::Timeout(to))??;
    let (sender, connection) = http2::Builder::new(tasks.clone())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .handshake(TokioIo::new(io))
        .await
        .map_err(ControlDialError::Http)?;
    tasks.execute(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to the control plane ended");
        }
    });
    Ok(sender)
}

/// Reads the agent's credential from disk each time, because it may have been renewed.
pub async fn credential(control: &ControlEndpoint) -> Result<String, ControlDialError> {
    let path = &control.credential;
    let text = tokio::fs::read_to_string(path)
        .await
        .map_err(|source| ControlDialError::File { path: path.clone(), source })?;
    Ok(text.trim().to_owned())
}

/// Configures TLS 1.3 and HTTP/2 only. Trusts no CA except those in the file `ca`.
fn client_config(ca: &Path) -> Result<ClientConfig, ControlDialError> {
    let pem = std::fs::read(ca).map_err(|source| ControlDialError::File { path: ca.to_owned(), source })?;
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok);
    if roots.add_parsable_certificates(certificates).0 == 0 {
        return Err(ControlDialError::Ca(ca.to_owned()));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider knows TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

trait ControlStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ControlStream for T {}

async fn connect(
    control: &ControlEndpoint,
    tls: TlsConnector,
) -> Result<Box<dyn ControlStream>, ControlDialError> {
    let to = control.address.to_string();
    let failed = |source| ControlDialError::Connect { to: to.clone(), source };
    let unproven = |source| ControlDialError::Unproven { to: to.clone(), source };
    let name = ServerName::try_from(SERVER_NAME).expect("a valid DNS name");
    match &control.address {
        ControlAddress::Unix(path) => {
            let socket = SocketPath::open(path).map_err(failed)?;
            let io = UnixStream::connect(socket.short()).await.map_err(failed)?;
            Ok(Box::new(tls.connect(name, io).await.map_err(unproven)?))
        }
        ControlAddress::Tcp { host, port } => {
            let io = TcpStream::connect((host.as_str(), *port)).await.map_err(failed)?;
            io.set_nodelay(true).map_err(failed)?;
            Ok(Box::new(tls.connect(name, io).await.map_err(unproven)?))
        }
    }
}
