//! Serves the connections of one listener. Bounds their number and the number of unauthenticated
//! ones, and drains all of them on shutdown.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    future::Future,
    io,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

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
    ConnectionLimits, ConnectionTasks, MAX_UNAUTHENTICATED, UNAUTHENTICATED_GRACE, UNAUTHENTICATED_TIMEOUT,
};

/// Time for calls in progress to end before streams are cancelled.
const CALL_GRACE: Duration = Duration::from_millis(300);
/// Time for streams to end before connections are closed by force.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// The steps of a server's shutdown.
#[derive(Debug, Clone, Default)]
pub struct ShutdownSignals {
    /// Cancelled first. The server then reports that it is not ready, accepts no connections, and
    /// asks clients to send no new calls.
    pub draining: CancellationToken,
    /// Cancelled second. Calls of clients then end with `SHUTTING_DOWN`, and agents' streams end.
    pub streams: CancellationToken,
}

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
            http: super::http(ConnectionTasks(tasks.clone()), bounds),
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
            let close = connection_state.close.clone();
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

/// All unauthenticated connections of one listener. Clones share them.
#[derive(Debug, Clone, Default)]
struct UnauthenticatedLimiter(Arc<Mutex<UnauthenticatedQueue>>);

#[derive(Debug, Default)]
struct UnauthenticatedQueue {
    next: u64,
    by_age: BTreeMap<u64, UnauthenticatedConnection>,
}

#[derive(Debug)]
struct UnauthenticatedConnection {
    since: Instant,
    close: CancellationToken,
}

/// Whether a connection is authenticated. Every request of the connection carries this as an
/// extension. Dropping it removes the connection from the limiter.
#[derive(Debug)]
pub struct ConnectionState {
    /// Key in the limiter's queue. The connection gets a new key each time it becomes
    /// unauthenticated. Changed under the queue's lock, like `reasons`.
    number: AtomicU64,
    /// Number of authenticated requests so far and of guards that exist. At 0 the connection is
    /// unauthenticated.
    reasons: AtomicUsize,
    unauthenticated: UnauthenticatedLimiter,
    /// Cancelled when the connection has to close.
    close: CancellationToken,
}

/// Keeps a connection authenticated until it is dropped.
#[derive(Debug)]
pub struct AuthenticatedGuard(Arc<ConnectionState>);

impl UnauthenticatedLimiter {
    /// Waits until another connection may be admitted. It needs a free slot, or an oldest
    /// connection whose grace period is over.
    async fn wait_for_slot(&self) {
        loop {
            let until = {
                let waiting = self.lock();
                let oldest =
                    waiting.by_age.values().next().filter(|_| waiting.by_age.len() >= MAX_UNAUTHENTICATED);
                let Some(oldest) = oldest else { return };
                oldest.since + UNAUTHENTICATED_GRACE
            };
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }

    /// Admits a new connection. At the limit it closes the oldest one.
    fn admit(&self) -> Arc<ConnectionState> {
        let close = CancellationToken::new();
        let number = self.lock().add(close.clone());
        Arc::new(ConnectionState {
            number: AtomicU64::new(number),
            reasons: AtomicUsize::new(0),
            unauthenticated: self.clone(),
            close,
        })
    }

    fn lock(&self) -> MutexGuard<'_, UnauthenticatedQueue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UnauthenticatedQueue {
    fn add(&mut self, close: CancellationToken) -> u64 {
        if self.by_age.len() >= MAX_UNAUTHENTICATED
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            oldest.close.cancel();
        }
        let number = self.next;
        self.next += 1;
        self.by_age.insert(number, UnauthenticatedConnection { since: Instant::now(), close });
        number
    }
}

impl ConnectionState {
    /// Marks the connection as authenticated as long as the guard lives.
    pub fn authenticated_guard(self: &Arc<Self>) -> AuthenticatedGuard {
        self.mark_authenticated();
        AuthenticatedGuard(self.clone())
    }

    /// Marks the connection as authenticated for the rest of its life.
    pub fn mark_authenticated(&self) {
        let mut unauthenticated = self.unauthenticated.lock();
        self.reasons.fetch_add(1, Relaxed);
        unauthenticated.by_age.remove(&self.number.load(Relaxed));
    }

    /// Returns when the connection became unauthenticated. Returns `None` if it is authenticated.
    fn unauthenticated_since(&self) -> Option<Instant> {
        self.unauthenticated.lock().by_age.get(&self.number.load(Relaxed)).map(|connection| connection.since)
    }
}

impl Drop for ConnectionState {
    fn drop(&mut self) {
        self.mark_authenticated();
    }
}

impl Drop for AuthenticatedGuard {
    fn drop(&mut self) {
        let mut unauthenticated = self.0.unauthenticated.lock();
        if self.0.reasons.fetch_sub(1, Relaxed) == 1 {
            let number = unauthenticated.add(self.0.close.clone());
            self.0.number.store(number, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn oldest_unauthenticated_connection_is_closed_at_limit() {
        let unauthenticated = UnauthenticatedLimiter::default();
        let known = unauthenticated.admit();
        known.mark_authenticated();
        let crowd: Vec<_> = (0..MAX_UNAUTHENTICATED).map(|_| unauthenticated.admit()).collect();
        let started = Instant::now();
        unauthenticated.wait_for_slot().await;
        assert_eq!(
            started.elapsed(),
            UNAUTHENTICATED_GRACE,
            "no connection is closed within its grace period"
        );
        let next = unauthenticated.admit();
        assert!(crowd[0].close.is_cancelled() && !crowd[1].close.is_cancelled());
        assert!(known.unauthenticated_since().is_none() && next.unauthenticated_since().is_some());
        assert!(!known.close.is_cancelled());
        drop(crowd);
        unauthenticated.wait_for_slot().await;
        assert_eq!(started.elapsed(), UNAUTHENTICATED_GRACE, "closed connections free their slots");
    }

    #[tokio::test(start_paused = true)]
    async fn connection_stays_authenticated_while_guard_lives() {
        let unauthenticated = UnauthenticatedLimiter::default();
        let connection_state = unauthenticated.admit();
        let (first, second) =
            (connection_state.authenticated_guard(), connection_state.authenticated_guard());
        drop(first);
        assert!(connection_state.unauthenticated_since().is_none());
        tokio::time::advance(UNAUTHENTICATED_GRACE).await;
        drop(second);
        assert_eq!(
            connection_state.unauthenticated_since(),
            Some(Instant::now()),
            "dropping the last guard makes it unauthenticated again"
        );
        drop(connection_state);
        assert!(unauthenticated.lock().by_age.is_empty());
    }
}
