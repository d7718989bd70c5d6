//! Every bound of a connection, and why it is what it is.

use std::time::Duration;

use hyper_util::{rt::TokioTimer, server::conn::auto::Builder};

use super::tasks::ConnectionTasks;

/// What differs from door to door.
#[derive(Debug, Clone, Copy)]
pub(super) struct ConnectionLimits {
    /// ServerConnections at once. A new one waits in the kernel's queue until another is closed.
    connections: usize,
    /// ServerConnections take no more than one in so many of the descriptors we may have.
    descriptor_divisor: usize,
    /// Streams at once on one connection. Further ones wait at the client.
    streams: u32,
    /// What one stream may send before we have read it.
    stream_window: u32,
}

/// Users and their tools: they may use half of the descriptors.
pub(super) const PUBLIC: ConnectionLimits =
    ConnectionLimits { connections: 8192, descriptor_divisor: 2, streams: 256, stream_window: STREAM_WINDOW };
/// Agents: one connection each, with one stream of small messages. There are places for two that live at once for each of as many
/// workspaces as there may be; the places of one workspace are counted by `agents`. What is left of the descriptors is for
/// the gateway's own connections to agents and for files.
pub(super) const AGENTS: ConnectionLimits =
    ConnectionLimits { connections: 20_000, descriptor_divisor: 4, streams: 8, stream_window: 128 * 1024 };

/// How long a connection may last without having shown a good token: TLS handshake and first request fit in easily.
/// Then it is closed, so that unauthenticated hold nothing for long.
pub(super) const UNAUTHENTICATED_TIMEOUT: Duration = Duration::from_secs(10);
/// ServerConnections that have shown no good token yet. The oldest is closed for a new one: who has a token shows it at once.
pub(super) const MAX_UNAUTHENTICATED: usize = 128;
/// A stranger that has just come is not closed for another before it has had this long to show a token: a handshake and a request
/// take some milliseconds, on a machine at its limits a hundred. In the meantime new ones wait in the kernel's queue, so that a crowd
/// is let in slowly, and nobody is pushed out by the one behind.
pub(super) const UNAUTHENTICATED_GRACE: Duration = Duration::from_millis(250);
/// Pause after the system could not give us a connection (no descriptors left), so that we do not spin.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What one stream may send before we have read it: 1 MiB keeps a fast link busy, and is what a stream can cost.
pub(crate) const STREAM_WINDOW: u32 = 1024 * 1024;
/// What all streams of a connection may send together: as much as the protocol allows, so that a stream nobody reads
/// never takes room from another. Memory is bounded by the streams' own windows.
pub(crate) const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// All headers of a request: the longest token is 8 KiB.
pub(super) const MAX_HEADER_BYTES: u32 = 32 * 1024;
/// Buffer of an HTTP/1 connection: holds the headers, and two frames of bulk on their way out.
const H1_BUFFER_BYTES: usize = 128 * 1024;
/// For all headers of an HTTP/1 request to arrive, and for an idle connection to stay.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// A connection whose other end is silent is asked whether it is there.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// For the answer to that.
pub(crate) const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// HTTP/1.1 and HTTP/2 within these bounds; tasks belong to `tasks`.
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
    /// How many connections there may be, as many descriptors as we may have.
    pub(super) fn connections(self) -> usize {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let descriptors = limit.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
        self.connections.min(descriptors / self.descriptor_divisor).max(1)
    }
}
