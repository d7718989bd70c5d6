//! The public listener (TCP, plain text or TLS) and the listener for agents (TLS over TCP or over a
//! unix socket).

use std::{
    convert::Infallible,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    sync::Arc,
};

use axum::body::Body;
use http::{Request, Response};
use hyper::body::Incoming;
use prometheus_client::metrics::gauge::Gauge;
use rustls::ServerConfig;
use tokio::{net::UnixListener, time::sleep};
use tokio_rustls::TlsAcceptor;
use tower::Service;

use super::{
    connections::{ServerConnections, ShutdownSignals},
    limits::{ACCEPT_PAUSE, AGENTS, PUBLIC},
    tcp_acceptor::TcpAcceptor,
};
use crate::unix_socket;

/// A bound listener with its connections.
#[derive(Debug)]
pub struct ServerListener {
    bound: BoundListener,
    connections: ServerConnections,
    stopping: ShutdownSignals,
}

enum BoundListener {
    Tcp(Arc<TcpAcceptor>, Option<TlsAcceptor>),
    Unix(UnixListener, TlsAcceptor),
}

impl ServerListener {
    /// Creates the public listener. It serves plain text if `tls` is `None`.
    pub fn public(
        listener: Arc<TcpAcceptor>,
        tls: Option<Arc<ServerConfig>>,
        stopping: ShutdownSignals,
        open: Gauge,
    ) -> Self {
        let bound = BoundListener::Tcp(listener, tls.map(TlsAcceptor::from));
        Self { bound, connections: ServerConnections::new(PUBLIC, stopping.clone(), open), stopping }
    }

    /// Creates the listener for agents on other machines.
    pub fn agents(
        listener: Arc<TcpAcceptor>,
        tls: Arc<ServerConfig>,
        stopping: ShutdownSignals,
        open: Gauge,
    ) -> Self {
        let bound = BoundListener::Tcp(listener, Some(tls.into()));
        Self { bound, connections: ServerConnections::new(AGENTS, stopping.clone(), open), stopping }
    }

    /// Binds the listener for agents on this machine to the unix socket `path`.
    pub fn unix(
        path: &Path,
        tls: Arc<ServerConfig>,
        stopping: ShutdownSignals,
        open: Gauge,
    ) -> io::Result<Self> {
        let bound = BoundListener::Unix(unix_socket::bind(path)?, tls.into());
        Ok(Self { bound, connections: ServerConnections::new(AGENTS, stopping.clone(), open), stopping })
    }

    /// Returns the URL for clients on this machine. Returns `None` for a unix socket.
    pub fn url(&self) -> Option<String> {
        match &self.bound {
            BoundListener::Tcp(listener, tls) => {
                let scheme = if tls.is_some() { "https" } else { "http" };
                let mut address = listener.local_addr().ok()?;
                // A client cannot connect to the unspecified address. A listener there also accepts
                // connections to the loopback address.
                if address.ip().is_unspecified() {
                    address.set_ip(match address {
                        SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                        SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
                    });
                }
                Some(format!("{scheme}://{address}"))
            }
            BoundListener::Unix(..) => None,
        }
    }

    /// Serves connections until `draining` is cancelled, then drains them.
    pub async fn serve<S>(self, service: S)
    where
        S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send,
    {
        loop {
            tokio::select! {
                () = self.stopping.draining.cancelled() => break,
                accepted = self.accept(&service) => {
                    if let Err(error) = accepted {
                        tracing::warn!(%error, "failed to accept connection");
                        sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        }
        // Closed before the connections drain, so that new clients are refused at once.
        drop(self.bound);
        self.connections.drain().await;
    }

    async fn accept<S>(&self, service: &S) -> io::Result<()>
    where
        S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send,
    {
        let permit = self.connections.acquire_permit().await;
        match &self.bound {
            BoundListener::Tcp(listener, tls) => {
                let tcp = listener.accept().await?;
                // Nagle's algorithm would delay keystrokes. An error means that the client has
                // gone.
                let _gone = tcp.set_nodelay(true);
                match tls.clone() {
                    Some(tls) => {
                        self.connections.serve(permit, async move { tls.accept(tcp).await }, service.clone());
                    }
                    None => self.connections.serve(permit, async { Ok(tcp) }, service.clone()),
                }
            }
            BoundListener::Unix(listener, tls) => {
                let (unix, _) = listener.accept().await?;
                let tls = tls.clone();
                self.connections.serve(permit, async move { tls.accept(unix).await }, service.clone());
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for BoundListener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(listener, _) => listener.fmt(f),
            Self::Unix(listener, _) => listener.fmt(f),
        }
    }
}
