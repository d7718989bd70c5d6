//! Limits of connections, each with its reason.

use std::time::Duration;

use hyper_util::{rt::TokioTimer, server::conn::auto::Builder};

use super::tasks::ConnectionTasks;

/// Limits that differ between listeners.
#[derive(Debug, Clone, Copy)]
pub(super) struct ConnectionLimits {
    /// Maximum number of connections. Further ones wait in the kernel's queue.
    connections: usize,
    /// Divides the process's limit of file descriptors. The listener uses at most the quotient.
    descriptor_divisor: usize,
    /// Concurrent streams of one connection. Further ones wait at the client.
    streams: u32,
    /// Flow-control window of one stream, in bytes.
    stream_window: u32,
}

/// Limits for users and their tools, which may use half of the descriptors.
pub(super) const PUBLIC: ConnectionLimits =
    ConnectionLimits { connections: 8192, descriptor_divisor: 2, streams: 256, stream_window: STREAM_WINDOW };
/// Limits for agents, which may use a quarter of the descriptors. An agent has one connection with
/// one stream of small messages, and two agents of a workspace may run at once. The `agents` module
/// limits the sessions of each workspace. The remaining descriptors are for the gateway's
/// connections to agents, and for files.
pub(super) const AGENTS: ConnectionLimits =
    ConnectionLimits { connections: 20_000, descriptor_divisor: 4, streams: 8, stream_window: 128 * 1024 };

/// Time for the TLS handshake, and again for the first authenticated request. Then the connection
/// is closed, so that unauthenticated clients hold no resources for long.
pub(super) const UNAUTHENTICATED_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of unauthenticated connections. The oldest is closed for a new one, because a
/// client with a token sends it at once.
pub(super) const MAX_UNAUTHENTICATED: usize = 128;
/// Time before an unauthenticated connection may be closed for a newer one. New connections wait in
/// the kernel's queue meanwhile, so a flood cannot displace clients that are about to authenticate.
/// A handshake and a request take milliseconds, or 100 ms on an overloaded machine.
pub(super) const UNAUTHENTICATED_GRACE: Duration = Duration::from_millis(250);
/// Pause after a failed accept (no descriptors left), to avoid a busy loop.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Default flow-control window of a stream, in bytes. 1 MiB keeps a fast network busy, and bounds
/// the memory of one stream.
pub(crate) const STREAM_WINDOW: u32 = 1024 * 1024;
/// Flow-control window of a whole connection, in bytes. The protocol's maximum, so that a stream
/// that is not read never blocks the others. The streams' own windows bound the memory.
pub(crate) const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// Largest headers of a request, in bytes. The longest token has 8 KiB.
pub(super) const MAX_HEADER_BYTES: u32 = 32 * 1024;
/// Buffer of an HTTP/1 connection, in bytes. Holds all headers of a request, or two 64 KiB frames
/// of a response.
const H1_BUFFER_BYTES: usize = 128 * 1024;
/// Time for all headers of an HTTP/1 request to arrive, and for an idle connection to stay open.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Interval of HTTP/2 keep-alive pings on an idle connection.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Time for the response to a keep-alive ping.
pub(crate) const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Returns a server for HTTP/1.1 and HTTP/2 with these limits that spawns on `tasks`.
pub(super) fn http(tasks: ConnectionTasks, bounds: ConnectionLimits) -> Builder<ConnectionTasks> {
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
    pub(super) fn connections(self) -> usize {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let descriptors = limit.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
        self.connections.min(descriptors / self.descriptor_divisor).max(1)
    }
}
