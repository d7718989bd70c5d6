//! Every bound of a connection, and why it is what it is.

use std::time::Duration;

use hyper_util::{rt::TokioTimer, server::conn::auto::Builder};

use super::tasks::Tasks;

/// How long a connection may last without having shown a good token: TLS handshake and first request fit in easily.
/// Then it is closed, so that strangers hold nothing for long.
pub(super) const STRANGER_TIME: Duration = Duration::from_secs(10);
/// Connections that have shown no good token yet. The oldest is closed for a new one: who has a token shows it at once.
pub(super) const MAX_STRANGERS: usize = 128;
/// Connections at once. A new one waits in the kernel's queue until another is closed.
pub(super) const MAX_CONNECTIONS: usize = 8192;
/// Pause after the system could not give us a connection (no descriptors left), so that we do not spin.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What one stream may send before we have read it: 1 MiB keeps a fast link busy, and is what a stream can cost.
pub(crate) const STREAM_WINDOW: u32 = 1024 * 1024;
/// What all streams of a connection may send together: as much as the protocol allows, so that a stream nobody reads
/// never takes room from another. Memory is bounded by the streams' own windows.
pub(crate) const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// Streams at once on one connection. Further ones wait at the client.
const MAX_STREAMS: u32 = 256;
/// All headers of a request: the longest token is 8 KiB.
const MAX_HEADER_BYTES: u32 = 32 * 1024;
/// Buffer of an HTTP/1 connection: holds the headers, and two frames of bulk on their way out.
const H1_BUFFER_BYTES: usize = 128 * 1024;
/// For all headers of an HTTP/1 request to arrive, and for an idle connection to stay.
const HEADER_TIME: Duration = Duration::from_secs(30);
/// A connection whose other end is silent is asked whether it is there.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// For the answer to that.
pub(crate) const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// HTTP/1.1 and HTTP/2 within these bounds; tasks belong to `tasks`.
pub(super) fn http(tasks: Tasks) -> Builder<Tasks> {
    let mut http = Builder::new(tasks);
    http.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIME).max_buf_size(H1_BUFFER_BYTES);
    http.http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_BYTES)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
    http
}
