//! A client at an agent itself: TLS over its unix socket or to its pod, its certificate pinned.

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

/// The name in an agent's certificate.
const AGENT: &str = "podling-agent";

/// Where an agent listens.
#[derive(Debug, Clone)]
pub enum DialAddress {
    /// A process's.
    Socket(PathBuf),
    /// A pod's.
    Address(SocketAddr),
}

/// A caller without a token at this agent, whose certificate has this fingerprint.
pub fn pinned_client(door: DialAddress, fingerprint: &str) -> Client {
    over(door, tls::pinned(Some(fingerprint)))
}

/// The same where nobody has said which certificate is the right one.
pub fn unpinned_client(door: DialAddress) -> Client {
    over(door, tls::pinned(None))
}

fn over(door: DialAddress, tls: ClientConfig) -> Client {
    let tls = TlsConnector::from(Arc::new(tls));
    // The scheme is http because TLS is the connector's own affair.
    let endpoint = Endpoint::from_static("http://podling-agent");
    Client::from_channel(endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
        let (door, tls) = (door.clone(), tls.clone());
        async move {
            let name = ServerName::try_from(AGENT).map_err(io::Error::other)?;
            Ok::<_, io::Error>(TokioIo::new(tls.connect(name, door.connect().await?).await?))
        }
    })))
}

/// What bytes pass through.
trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

impl DialAddress {
    async fn connect(&self) -> io::Result<Box<dyn ByteStream>> {
        Ok(match self {
            Self::Socket(path) => Box::new(connect(path).await?),
            Self::Address(address) => Box::new(TcpStream::connect(address).await?),
        })
    }
}

/// Connects to a unix socket, also where its path is longer than an address can hold.
async fn connect(socket: &Path) -> io::Result<UnixStream> {
    // Through the folder's descriptor the address is short, however deep the folder lies.
    let folder = fs::File::open(socket.parent().unwrap_or(Path::new("/")))?;
    let name = socket.file_name().unwrap_or_default();
    let short =
        PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&folder))).join(name);
    UnixStream::connect(short).await
}
