//! The server: one TLS port for gRPC, gRPC-web and plain HTTP. Independent of the services.

pub mod auth;
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

    /// Address for clients: `unix:PATH` or `IP:PORT`.
    pub fn address(&self) -> io::Result<String> {
        self.listener.address()
    }

    /// Accepts connections while it is polled. An error means that the listener is lost. `drain`
    /// lets open calls end.
    pub async fn run(&mut self, router: Router, drain: &CancellationToken) -> io::Result<Infallible> {
        loop {
            let io = tokio::select! {
                biased;
                // Removes connections that have ended. A panic in one ends only that one.
                Some(_) = self.serving.join_next() => continue,
                io = self.listener.accept() => io?,
            };
            if let Some(permit) = self.connections.try_acquire() {
                self.serving.spawn(permit.serve(io, self.tls.clone(), router.clone(), drain.clone()));
            }
        }
    }

    /// Waits until all open calls have ended, for `deadline` at most, then closes the remaining
    /// ones.
    pub async fn drained(self, deadline: Duration) {
        let Self { listener, mut serving, .. } = self;
        drop(listener);
        let all_ended = async { while serving.join_next().await.is_some() {} };
        if timeout(deadline, all_ended).await.is_err() {
            tracing::info!(open = serving.len(), "closing calls that did not end in time");
        }
        serving.shutdown().await;
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("listener", &self.listener).finish_non_exhaustive()
    }
}
