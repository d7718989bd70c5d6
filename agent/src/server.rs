//! The server: one TLS listener for gRPC, gRPC-web and plain HTTP. Independent of the services.

pub mod auth;
pub mod call_tracking;
pub mod connection;
pub mod error_response;
pub mod identity;
pub mod info;
pub mod listener;
pub mod router;
pub mod shutdown_trailers;

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use axum::Router;
use tokio::{task::JoinSet, time::timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use self::{connection::ClientConnections, listener::AgentListener};
use crate::metrics::AgentMetrics;

/// Accepts connections until shutdown, then drains them.
pub struct Server {
    listener: AgentListener,
    tls: TlsAcceptor,
    connections: ClientConnections,
    serving: JoinSet<()>,
}

impl Server {
    pub fn new(listener: AgentListener, tls: rustls::ServerConfig, metrics: AgentMetrics) -> Self {
        let tls = TlsAcceptor::from(Arc::new(tls));
        Self { listener, tls, connections: ClientConnections::new(metrics), serving: JoinSet::new() }
    }

    /// Returns the address for clients: `unix:PATH` or `IP:PORT`.
    pub fn address(&self) -> io::Result<String> {
        self.listener.address()
    }

    /// Accepts connections until the future is dropped. Returns only if the listener has failed.
    /// After `drain` is cancelled, open connections accept no more calls, and open calls continue.
    pub async fn run(&mut self, router: Router, drain: &CancellationToken) -> io::Result<Infallible> {
        loop {
            let io = tokio::select! {
                biased;
                // Removes connections that have ended. A panic ends only its own connection.
                Some(_) = self.serving.join_next() => continue,
                io = self.listener.accept() => io?,
            };
            if let Some(permit) = self.connections.try_acquire() {
                self.serving.spawn(permit.serve(io, self.tls.clone(), router.clone(), drain.clone()));
            }
        }
    }

    /// Closes the listener, waits up to `deadline` until all connections have ended, then closes
    /// the remaining ones.
    pub async fn drained(self, deadline: Duration) {
        let Self { listener, mut serving, .. } = self;
        drop(listener);
        let all_ended = async { while serving.join_next().await.is_some() {} };
        if timeout(deadline, all_ended).await.is_err() {
            tracing::info!(open = serving.len(), "closing connections whose calls did not end in time");
        }
        serving.shutdown().await;
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("listener", &self.listener).finish_non_exhaustive()
    }
}
