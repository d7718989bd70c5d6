//! A client at an agent itself: TLS over its unix socket, its certificate pinned.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::UnixStream;
use tokio_rustls::TlsConnector;
use tonic::transport::Endpoint;

use crate::{client::Client, tls};

/// The name in an agent's certificate.
const AGENT: &str = "podling-agent";

/// A caller without a token at the agent behind `socket`, whose certificate has this fingerprint.
pub fn client(socket: &Path, fingerprint: &str) -> Client {
    over(socket, tls::pinned(Some(fingerprint)))
}

/// The same where nobody has said which certificate is the right one.
pub fn trusting(socket: &Path) -> Client {
    over(socket, tls::pinned(None))
}

fn over(socket: &Path, tls: ClientConfig) -> Client {
    let socket = socket.to_owned();
    let tls = TlsConnector::from(Arc::new(tls));
    // The scheme is http because TLS is the connector's own affair.
    let endpoint = Endpoint::from_static("http://podling-agent");
    Client::over(endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
        let (socket, tls) = (socket.clone(), tls.clone());
        async move {
            let name = ServerName::try_from(AGENT).map_err(io::Error::other)?;
            Ok::<_, io::Error>(TokioIo::new(tls.connect(name, connect(&socket).await?).await?))
        }
    })))
}

/// Connects to a unix socket, also where its path is longer than an address can hold.
pub async fn connect(socket: &Path) -> io::Result<UnixStream> {
    // Through the folder's descriptor the address is short, however deep the folder lies.
    let folder = fs::File::open(socket.parent().unwrap_or(Path::new("/")))?;
    let name = socket.file_name().unwrap_or_default();
    let short =
        PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&folder))).join(name);
    UnixStream::connect(short).await
}
