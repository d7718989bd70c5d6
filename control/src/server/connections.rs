//! Serves the connections of one listener. Bounds their number, and drains all of them on shutdown.

use std::{convert::Infallible, future::Future, io, pin::pin, sync::Arc, time::Duration};

use axum::body::Body;
use http::{Request, Response};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{rt::TokioIo, server::conn::auto::Builder};
use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::{Service, ServiceExt};

use super::{
    limits::{self, ConnectionLimits, UNAUTHENTICATED_TIMEOUT},
    tasks::ConnectionTasks,
    unauthenticated::UnauthenticatedLimiter,
};

/// The steps of a server's shutdown.
#[derive(Debug, Clone, Default)]
pub struct ShutdownSignals {
    /// Cancelled first. The server then reports that it is not ready, accepts no connections, and
    /// asks clients to send no new calls.
    pub draining: CancellationToken,
    /// Cancelled second. Calls of clients then end with `SHUTTING_DOWN`, and agents' streams end.
    pub streams: CancellationToken,
}

/// Time for calls in progress to end before streams are cancelled.
const CALL_GRACE: Duration = Duration::from_millis(300);
/// Time for streams to end before connections are closed by force.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// All connections of one listener. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct ServerConnections {
    tasks: TaskTracker,
    http: Builder<ConnectionTasks>,
    unauthenticated: UnauthenticatedLimiter,
    permits: Arc<Semaphore>,
    stopping: ShutdownSignals,
    cut: CancellationToken,
    open: Gauge,
}

impl ServerConnections {
    pub(super) fn new(bounds: ConnectionLimits, stopping: ShutdownSignals, open: Gauge) -> Self {
        let tasks = TaskTracker::new();
        Self {
            http: limits::http(ConnectionTasks(tasks.clone()), bounds),
            tasks,
            unauthenticated: UnauthenticatedLimiter::default(),
            permits: Arc::new(Semaphore::new(bounds.connections())),
            stopping,
            cut: CancellationToken::new(),
            open,
        }
    }

    /// Waits until the limits allow another connection.
    pub(super) async fn acquire_permit(&self) -> OwnedSemaphorePermit {
        self.unauthenticated.wait_for_slot().await;
        // The semaphore is never closed.
        self.permits.clone().acquire_owned().await.expect("the semaphore is open")
    }

    /// Serves the connection that `io` yields. With TLS, `io` is the handshake.
    pub(super) fn serve<I, S>(
        &self,
        permit: OwnedSemaphorePermit,
        io: impl Future<Output = io::Result<I>> + Send + 'static,
        service: S,
    ) where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send,
    {
        let this = self.clone();
        self.tasks.spawn(async move {
            let connection_state = this.unauthenticated.admit();
            this.open.inc();
            let close = connection_state.close().clone();
            let served = async {
                let deadline = timeout(UNAUTHENTICATED_TIMEOUT, io).await;
                let Ok(Ok(io)) = deadline.inspect_err(|_| tracing::debug!("TLS handshake timed out")) else {
                    return;
                };
                let from = connection_state.clone();
                let service = service_fn(move |mut request: Request<Incoming>| {
                    request.extensions_mut().insert(from.clone());
                    service.clone().oneshot(request)
                });
                let mut connection = pin!(this.http.serve_connection(TokioIo::new(io), service));
                let mut authentication_check = pin!(sleep_until(Instant::now() + UNAUTHENTICATED_TIMEOUT));
                let mut draining = false;
                loop {
                    tokio::select! {
                        ended = connection.as_mut() => {
                            if let Err(error) = ended {
                                tracing::debug!(error, "connection failed");
                            }
                            return;
                        }
                        () = this.stopping.draining.cancelled(), if !draining => {
                            draining = true;
                            connection.as_mut().graceful_shutdown();
                        }
                        () = authentication_check.as_mut() => {
                            // An authenticated connection becomes unauthenticated again when its
                            // last guard is dropped, so the check repeats.
                            let since = connection_state.unauthenticated_since().unwrap_or_else(Instant::now);
                            let late = since + UNAUTHENTICATED_TIMEOUT;
                            if late <= Instant::now() {
                                return;
                            }
                            authentication_check.as_mut().reset(late);
                        }
                    }
                }
            };
            tokio::select! {
                () = served => {}
                () = close.cancelled() => {}
                () = this.cut.cancelled() => {}
            }
            this.open.dec();
            drop(permit);
        });
    }

    /// Waits until all connections have ended. Cancels streams after [`CALL_GRACE`], and closes the
    /// connections that are left after [`DRAIN_TIMEOUT`]. The listener must be closed before.
    pub(super) async fn drain(self) {
        self.tasks.close();
        if timeout(CALL_GRACE, self.tasks.wait()).await.is_ok() {
            return;
        }
        self.stopping.streams.cancel();
        if timeout(DRAIN_TIMEOUT, self.tasks.wait()).await.is_err() {
            tracing::warn!(connections = self.tasks.len(), "closing connections that did not drain in time");
            self.cut.cancel();
            self.tasks.wait().await;
        }
    }
}
