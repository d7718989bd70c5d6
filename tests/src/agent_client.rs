//! Creates clients that connect to an agent without the gateway, with TLS over its unix socket or
//! to its pod.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::TlsConnector;
use tonic::transport::Endpoint;

use crate::{client::Client, tls};

/// DNS name in the certificate of an agent.
const CERTIFICATE_NAME: &str = "podling-agent";

/// Address of an agent, or of the control plane's listener for agents.
#[derive(Debug, Clone)]
pub enum DialAddress {
    /// Socket of a workspace that is a set of processes.
    Unix(PathBuf),
    /// Address of a workspace that is a pod.
    Tcp(SocketAddr),
}

/// Creates a client without a token that accepts only the certificate with this fingerprint.
pub fn pinned_client(address: DialAddress, fingerprint: &str) -> Client {
    client_over(address, tls::pinned(Some(fingerprint)))
}

/// Creates a client without a token that accepts any certificate.
pub fn unpinned_client(address: DialAddress) -> Client {
    client_over(address, tls::pinned(None))
}

fn client_over(address: DialAddress, tls: ClientConfig) -> Client {
    let tls = TlsConnector::from(Arc::new(tls));
    // The scheme is http because the connector does TLS itself.
    let endpoint = Endpoint::from_static("http://podling-agent");
    Client::from_channel(endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
        let (address, tls) = (address.clone(), tls.clone());
        async move {
            let name = ServerName::try_from(CERTIFICATE_NAME).map_err(io::Error::other)?;
            Ok::<_, io::Error>(TokioIo::new(tls.connect(name, address.connect().await?).await?))
        }
    })))
}

trait AgentByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> AgentByteStream for T {}

impl DialAddress {
    async fn connect(&self) -> io::Result<Box<dyn AgentByteStream>> {
        Ok(match self {
            Self::Unix(path) => Box::new(connect(path).await?),
            Self::Tcp(address) => Box::new(TcpStream::connect(address).await?),
        })
    }
}

/// Connects to a unix socket whose path may be longer than a socket address permits (108 bytes).
async fn connect(socket: &Path) -> io::Result<UnixStream> {
    // A path through the directory's descriptor is short, however deep the directory is.
    let dir = fs::File::open(socket.parent().unwrap_or(Path::new("/")))?;
    let name = socket.file_name().unwrap_or_default();
    let short = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&dir))).join(name);
    UnixStream::connect(short).await
}
