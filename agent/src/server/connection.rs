//! Limits the number of connections, and serves each of them.
//!
//! A connection is unauthenticated until a call on it has presented a valid token. Unauthenticated
//! connections share a small number of slots. When all slots are taken, the oldest of these
//! connections is closed. A flood of them therefore needs little memory, and does not keep health
//! probes from connecting.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::Router;
use http::Request;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::Service;

use super::listener::ClientSocket;
use crate::{metrics::AgentMetrics, tasks::ConnectionExecutor, util::lock};

/// Connections at once. A further one is closed before its TLS handshake.
const MAX_CONNECTIONS: usize = 512;
/// Unauthenticated connections at once. A further one replaces the oldest.
const MAX_UNAUTHENTICATED: usize = 32;
/// Time limit for a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time limit for the head of an HTTP/1.1 request, including the wait for it.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);
/// Flow-control window of a stream: request bytes that a client may send before the server reads
/// them.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// Flow-control window of a connection. It is the maximum of HTTP/2, so that a stream that is not
/// read never blocks the others. The stream windows bound the memory of a connection.
const CONNECTION_WINDOW_BYTES: u32 = i32::MAX as u32;
/// Streams at once on a connection. Further ones wait at the client.
const MAX_STREAMS: u32 = 256;
/// Response bytes that the server buffers for one stream of a slow client.
const SEND_BUFFER_BYTES: usize = 256 * 1024;
/// Longest header list of an HTTP/2 request.
const MAX_HEADER_BYTES: u32 = 32 * 1024;
/// Longest head of an HTTP/1.1 request.
const HTTP1_HEAD_BYTES: usize = 64 * 1024;
/// Interval of HTTP/2 pings on a silent connection.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// Time without an answer to a ping after which the connection is closed.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Limits and counts the open connections.
#[derive(Debug, Clone)]
pub struct ClientConnections {
    open: Arc<Mutex<OpenConnections>>,
    metrics: AgentMetrics,
}

#[derive(Debug, Default)]
struct OpenConnections {
    count: usize,
    unauthenticated: VecDeque<(ConnectionAuth, CancellationToken)>,
}

/// Records whether a call on a connection has presented a valid token. Each request of the
/// connection carries a clone as an extension.
#[derive(Debug, Clone, Default)]
pub struct ConnectionAuth(Arc<AtomicBool>);

/// Permission for one open connection, released when dropped.
#[derive(Debug)]
pub struct ConnectionPermit {
    connections: ClientConnections,
    auth: ConnectionAuth,
    /// Cancelled when a newer unauthenticated connection takes the slot.
    evicted: CancellationToken,
}

// === impl ConnectionAuth ===

impl ConnectionAuth {
    pub fn mark_authenticated(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_authenticated(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

// === impl ClientConnections ===

impl ClientConnections {
    pub fn new(metrics: AgentMetrics) -> Self {
        Self { open: Arc::default(), metrics }
    }

    /// Returns a permit for one more connection. Closes the oldest unauthenticated connection if
    /// `MAX_UNAUTHENTICATED` are open. Returns `None` if `MAX_CONNECTIONS` are open.
    pub fn try_acquire(&self) -> Option<ConnectionPermit> {
        let mut open = lock(&self.open);
        open.unauthenticated.retain(|(auth, _)| !auth.is_authenticated());
        if open.unauthenticated.len() >= MAX_UNAUTHENTICATED
            && let Some((_, evicted)) = open.unauthenticated.pop_front()
        {
            evicted.cancel();
            self.metrics.connection_rejected();
        }
        if open.count >= MAX_CONNECTIONS {
            self.metrics.connection_rejected();
            return None;
        }
        open.count += 1;
        self.metrics.connections().inc();
        let (auth, evicted) = (ConnectionAuth::default(), CancellationToken::new());
        open.unauthenticated.push_back((auth.clone(), evicted.clone()));
        Some(ConnectionPermit { connections: self.clone(), auth, evicted })
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut open = lock(&self.connections.open);
        open.count -= 1;
        open.unauthenticated.retain(|(auth, _)| !Arc::ptr_eq(&auth.0, &self.auth.0));
        self.connections.metrics.connections().dec();
    }
}

// === impl ConnectionPermit ===

impl ConnectionPermit {
    /// Serves a connection until it ends. After `closing` is cancelled, no more calls are accepted,
    /// and open calls continue. Dropping the future closes the connection.
    pub async fn serve(
        self,
        io: Box<dyn ClientSocket>,
        tls: TlsAcceptor,
        router: Router,
        closing: CancellationToken,
    ) {
        let evicted = self.evicted.clone();
        let lifetime = CancellationToken::new();
        let _ends_with_us = lifetime.clone().drop_guard();
        // Boxed, because `run_until_cancelled` would contain the future twice.
        let served = Box::pin(self.serve_until(io, tls, router, closing, lifetime));
        evicted.run_until_cancelled(served).await;
    }

    async fn serve_until(
        &self,
        io: Box<dyn ClientSocket>,
        tls: TlsAcceptor,
        router: Router,
        closing: CancellationToken,
        lifetime: CancellationToken,
    ) {
        let io = match timeout(HANDSHAKE_TIMEOUT, tls.accept(io)).await {
            Ok(Ok(io)) => io,
            Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
            Err(_) => return tracing::debug!("TLS handshake timed out"),
        };
        let auth = self.auth.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(auth.clone());
            let answer = router.clone().call(request);
            async move { answer.await as Result<_, Infallible> }
        });
        let builder = protocol(ConnectionExecutor::new(lifetime));
        let connection = builder.serve_connection(TokioIo::new(io), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = closing.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "connection failed");
        }
    }
}

fn protocol(spawner: ConnectionExecutor) -> auto::Builder<ConnectionExecutor> {
    let mut builder = auto::Builder::new(spawner);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HTTP1_HEAD_BYTES)
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(MAX_STREAMS)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_header_list_size(MAX_HEADER_BYTES)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oldest_unauthenticated_connection_is_closed_first() {
        let connections = ClientConnections::new(AgentMetrics::new());
        let authenticated = connections.try_acquire().expect("a permit");
        authenticated.auth.mark_authenticated();
        let unauthenticated: Vec<_> =
            (0..MAX_UNAUTHENTICATED + 3).map(|_| connections.try_acquire().expect("a permit")).collect();
        let evicted: Vec<_> = unauthenticated.iter().map(|permit| permit.evicted.is_cancelled()).collect();
        assert_eq!(evicted[..4], [true, true, true, false], "the oldest connections are closed first");
        assert!(!authenticated.evicted.is_cancelled());
        drop(unauthenticated);
        assert_eq!(lock(&connections.open).count, 1);
        assert!(lock(&connections.open).unauthenticated.is_empty());
    }

    #[test]
    fn connection_over_limit_is_rejected() {
        let connections = ClientConnections::new(AgentMetrics::new());
        let permits: Vec<_> = (0..MAX_CONNECTIONS)
            .map(|_| {
                let permit = connections.try_acquire().expect("a permit");
                permit.auth.mark_authenticated();
                permit
            })
            .collect();
        assert!(connections.try_acquire().is_none());
        drop(permits);
        assert!(connections.try_acquire().is_some());
    }
}
