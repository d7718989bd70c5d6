//! Creates clients that connect to an agent without the gateway, with TLS over its unix socket or
//! to its pod.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::Endpoint;

use crate::{
    client::Client,
    net::{BoxedStream, DialAddress},
    tls,
};

/// DNS name in the certificate of an agent.
pub const CERTIFICATE_NAME: &str = "podling-agent";

/// Creates a client without a token that accepts only the certificate with this fingerprint.
pub fn pinned_client(address: DialAddress, fingerprint: &str) -> Client {
    client_over(address, tls::pinned(Some(fingerprint)), Reconnect::Always)
}

/// Creates a client like [`pinned_client`] that never connects again, so that its calls fail once
/// the agent has closed the connection.
pub fn single_connection(address: DialAddress, fingerprint: &str) -> Client {
    client_over(address, tls::pinned(Some(fingerprint)), Reconnect::Never)
}

/// Creates a client without a token that accepts any certificate.
pub fn unpinned_client(address: DialAddress) -> Client {
    client_over(address, tls::pinned(None), Reconnect::Always)
}

/// Connects to an agent with TLS.
///
/// # Errors
///
/// Fails if nothing listens there, or if the configuration does not accept the certificate.
pub async fn connect(address: &DialAddress, tls: ClientConfig) -> io::Result<TlsStream<BoxedStream>> {
    let name = ServerName::try_from(CERTIFICATE_NAME).map_err(io::Error::other)?;
    TlsConnector::from(Arc::new(tls)).connect(name, address.connect().await?).await
}

/// Whether a client replaces a closed connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reconnect {
    Always,
    Never,
}

fn client_over(address: DialAddress, tls: ClientConfig, reconnect: Reconnect) -> Client {
    // The scheme is http because the connector does TLS itself.
    let endpoint = Endpoint::from_static("http://podling-agent");
    let connected = Arc::new(AtomicBool::new(false));
    Client::from_channel(endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
        let (address, tls) = (address.clone(), tls.clone());
        let again = connected.swap(true, Ordering::Relaxed);
        async move {
            if again && reconnect == Reconnect::Never {
                return Err(io::Error::other("the agent closed the connection"));
            }
            connect(&address, tls).await.map(TokioIo::new)
        }
    })))
}
