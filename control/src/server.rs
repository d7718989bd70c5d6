//! The HTTP server: listeners, limits, connections and routers. One listener is public (TCP, plain
//! text or TLS), the other is for agents (TLS over TCP or over a unix socket). The public router
//! authenticates each request before a handler runs. The agents' service checks the credentials of
//! agents itself.
//!
//! Unix sockets may have paths that are longer than `sun_path` (107 bytes). A short path leads
//! through a descriptor of the socket's directory.

mod connections;
mod router;
mod services;

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::Future,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::{fs::PermissionsExt, net::UnixListener as StdListener},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::body::Body;
use http::{Request, Response};
use hyper::{body::Incoming, rt::Executor};
use hyper_util::{rt::TokioTimer, server::conn::auto::Builder};
use podling_proto::procfs::SocketPath;
use prometheus_client::metrics::gauge::Gauge;
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    time::sleep,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{either::Either, task::TaskTracker};
use tower::Service;

use self::connections::ServerConnections;
pub(crate) use self::router::probe;
pub(crate) use self::services::{BODY_TIMEOUT, body_timeout, too_large};
pub use self::{
    connections::{AuthenticatedGuard, ConnectionState, ShutdownSignals},
    router::{PublicRouter, cors},
    services::{GrpcServices, MAX_MESSAGE_BYTES, MessageLimit},
};

/// Limits for users and their tools, which may use half of the descriptors.
const PUBLIC: ConnectionLimits =
    ConnectionLimits { connections: 8192, descriptor_divisor: 2, streams: 256, stream_window: STREAM_WINDOW };
/// Limits for agents, which may use a quarter of the descriptors. An agent has one connection with
/// one stream of small messages, and two agents of a workspace may run at once. The `agents` module
/// limits the sessions of each workspace. The remaining descriptors are for the gateway's
/// connections to agents, and for files.
const AGENTS: ConnectionLimits =
    ConnectionLimits { connections: 20_000, descriptor_divisor: 4, streams: 8, stream_window: 128 * 1024 };

/// Time for the TLS handshake, and again for the first authenticated request. Then the connection
/// is closed, so that unauthenticated clients hold no resources for long.
const UNAUTHENTICATED_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of unauthenticated connections. The oldest is closed for a new one, because a
/// client with a token sends it at once.
const MAX_UNAUTHENTICATED: usize = 128;
/// Time before an unauthenticated connection may be closed for a newer one. New connections wait in
/// the kernel's queue meanwhile, so a flood cannot displace clients that are about to authenticate.
/// A handshake and a request take milliseconds, or 100 ms on an overloaded machine.
const UNAUTHENTICATED_GRACE: Duration = Duration::from_millis(250);
/// Pause after a failed accept (no descriptors left), to avoid a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Default flow-control window of a stream, in bytes. 1 MiB keeps a fast network busy, and bounds
/// the memory of one stream.
pub(crate) const STREAM_WINDOW: u32 = 1024 * 1024;
/// Flow-control window of a whole connection, in bytes. The protocol's maximum, so that a stream
/// that is not read never blocks the others. The streams' own windows bound the memory.
pub(crate) const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// Largest headers of a request, in bytes. The longest token has 8 KiB.
const MAX_HEADER_BYTES: u32 = 32 * 1024;
/// Buffer of an HTTP/1 connection, in bytes. Holds all headers of a request, or two 64 KiB frames
/// of a response.
const H1_BUFFER_BYTES: usize = 128 * 1024;
/// Time for all headers of an HTTP/1 request to arrive, and for an idle connection to stay open.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Interval of HTTP/2 keep-alive pings on an idle connection.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Time for the response to a keep-alive ping.
pub(crate) const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// A bound listener with its connections.
#[derive(Debug)]
pub struct ServerListener {
    bound: BoundListener,
    /// `None` for plain text.
    tls: Option<Arc<ServerConfig>>,
    connections: ServerConnections,
    stopping: ShutdownSignals,
}

/// The socket of a listener.
#[derive(Debug)]
pub enum BoundListener {
    Tcp(Arc<TcpAcceptor>),
    /// For agents on this machine.
    Unix(UnixListener),
}

impl ServerListener {
    /// Creates the public listener. It serves plain text if `tls` is `None`.
    pub fn public(
        listener: Arc<TcpAcceptor>,
        tls: Option<Arc<ServerConfig>>,
        stopping: ShutdownSignals,
        open: Gauge,
    ) -> Self {
        let connections = ServerConnections::new(PUBLIC, stopping.clone(), open);
        Self { bound: BoundListener::Tcp(listener), tls, connections, stopping }
    }

    /// Creates the listener for agents.
    pub fn agents(
        bound: BoundListener,
        tls: Arc<ServerConfig>,
        stopping: ShutdownSignals,
        open: Gauge,
    ) -> Self {
        let connections = ServerConnections::new(AGENTS, stopping.clone(), open);
        Self { bound, tls: Some(tls), connections, stopping }
    }

    /// Returns the URL for clients on this machine. Returns `None` for a unix socket.
    pub fn url(&self) -> Option<String> {
        let BoundListener::Tcp(listener) = &self.bound else { return None };
        let scheme = if self.tls.is_some() { "https" } else { "http" };
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
        let accept = || async {
            let permit = self.connections.acquire_permit().await;
            let io = match &self.bound {
                BoundListener::Tcp(listener) => {
                    let tcp = listener.accept().await?;
                    // Nagle's algorithm would delay keystrokes. An error means that the client has
                    // gone.
                    let _gone = tcp.set_nodelay(true);
                    Either::Left(tcp)
                }
                BoundListener::Unix(listener) => Either::Right(listener.accept().await?.0),
            };
            match self.tls.clone().map(TlsAcceptor::from) {
                Some(tls) => self.connections.serve(permit, tls.accept(io), service.clone()),
                None => self.connections.serve(permit, async { Ok(io) }, service.clone()),
            }
            Ok::<_, io::Error>(())
        };
        loop {
            tokio::select! {
                () = self.stopping.draining.cancelled() => break,
                accepted = accept() => {
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
}

/// Limits that differ between listeners.
#[derive(Debug, Clone, Copy)]
struct ConnectionLimits {
    /// Maximum number of connections. Further ones wait in the kernel's queue.
    connections: usize,
    /// Divides the process's limit of file descriptors. The listener uses at most the quotient.
    descriptor_divisor: usize,
    /// Concurrent streams of one connection. Further ones wait at the client.
    streams: u32,
    /// Flow-control window of one stream, in bytes.
    stream_window: u32,
}

/// Returns a server for HTTP/1.1 and HTTP/2 with these limits that spawns on `tasks`.
fn http(tasks: ConnectionTasks, bounds: ConnectionLimits) -> Builder<ConnectionTasks> {
    let mut http = Builder::new(tasks);
    http.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(H1_BUFFER_BYTES);
    http.http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(bounds.stream_window)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(bounds.streams)
        .max_header_list_size(MAX_HEADER_BYTES)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
    http
}

impl ConnectionLimits {
    /// Returns the maximum number of connections, at least 1. Considers the process's limit of file
    /// descriptors.
    fn connections(self) -> usize {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let descriptors = limit.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
        self.connections.min(descriptors / self.descriptor_divisor).max(1)
    }
}

/// The executor that hyper spawns its tasks on.
#[derive(Debug, Clone, Default)]
pub struct ConnectionTasks(pub TaskTracker);

impl<F> Executor<F> for ConnectionTasks
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}

/// A listener, and connections that were accepted before the server started.
#[derive(Debug)]
pub struct TcpAcceptor {
    listener: TcpListener,
    waiting: Mutex<VecDeque<TcpStream>>,
}

impl TcpAcceptor {
    pub fn new(listener: TcpListener) -> Self {
        Self { listener, waiting: Mutex::default() }
    }

    /// Lets a connection wait. [`Self::accept`] returns it before it accepts new ones.
    pub fn put_back(&self, connection: TcpStream) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push_back(connection);
    }

    /// Accepts a connection. Cancelling this loses none.
    pub async fn accept(&self) -> io::Result<TcpStream> {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        match waiting {
            Some(connection) => Ok(connection),
            None => Ok(self.listener.accept().await?.0),
        }
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Listens at `path` with mode 0600. Replaces an existing socket. The caller must ensure that no
/// process listens on it.
pub fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    let socket = SocketPath::open(path)?;
    let short = socket.short();
    match std::fs::remove_file(short) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = StdListener::bind(short)?;
    std::fs::set_permissions(short, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

pub(crate) async fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(SocketPath::open(path)?.short()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn socket_below_long_path_is_reachable() {
        let directory = tempfile::tempdir().expect("directory");
        let deep = directory.path().join("x".repeat(120)).join("y".repeat(120));
        std::fs::create_dir_all(&deep).expect("directories");
        let path = deep.join("control.sock");
        let listener = bind_unix(&path).expect("bind");
        let (client, server) = tokio::join!(connect_unix(&path), listener.accept());
        assert!(client.is_ok() && server.is_ok());
        assert_eq!(path.metadata().expect("metadata").permissions().mode() & 0o777, 0o600);
        assert!(bind_unix(&path).is_ok(), "a socket left by a crash is replaced");
    }
}
