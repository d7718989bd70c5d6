//! Connects to one remote terminal by a sequence of Attach streams. Each replaces one that broke.

use std::{
    future::{pending, ready},
    time::Duration,
};

use futures_util::{
    FutureExt as _, StreamExt as _, TryFutureExt as _,
    stream::{self, LocalBoxStream},
};
use podling_proto::agent::v1::{AttachOpen, AttachRequest, AttachResponse, attach_request::Request};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};

use crate::{backoff::RetryBackoff, client::WorkspaceClient};

/// Capacity of the request channel of a stream. When it is full, input stays in the outbox.
const QUEUE: usize = 16;

/// Opens, reads and reopens Attach streams of one terminal.
pub struct TerminalConnection {
    workspace_client: WorkspaceClient,
    /// Events of the present stream or back-off.
    events: LocalBoxStream<'static, ConnectionEvent>,
    /// Requests of the present stream. `None` if there is none.
    requests: Option<mpsc::Sender<AttachRequest>>,
    backoff: RetryBackoff,
    lost_since: Option<Instant>,
}

/// Change of a connection, returned by [`TerminalConnection::next`].
#[derive(Debug)]
pub enum ConnectionEvent {
    /// The back-off is over. The caller must call [`TerminalConnection::open`].
    Retry,
    Response(AttachResponse),
    /// The stream ended or could not be opened.
    Ended(Status),
}

impl TerminalConnection {
    /// Creates a connection that reports [`ConnectionEvent::Retry`] at once.
    pub fn new(workspace_client: WorkspaceClient) -> Self {
        let (events, backoff) = (retry_after(Duration::ZERO), RetryBackoff::default());
        Self { workspace_client, events, requests: None, backoff, lost_since: None }
    }

    /// Opens a stream. Wakes a sleeping workspace only if `wakes` is set.
    pub fn open(&mut self, open: AttachOpen, wakes: bool) {
        let (tx, rx) = mpsc::channel(QUEUE);
        let first = AttachRequest { request: Some(Request::Open(open)) };
        // Cannot fail: the channel is new and empty.
        let _ = tx.try_send(first);
        let client = &self.workspace_client;
        let mut terminals = if wakes { client.terminals() } else { client.without_waking().terminals() };
        let opening = async move { terminals.attach(ReceiverStream::new(rx)).await };
        let responses = opening.map_ok(Response::into_inner).try_flatten_stream();
        let end = ready(Err(Status::unavailable("the stream ended, but the terminal has not")));
        let events = responses.chain(stream::once(end)).map(|response| match response {
            Ok(response) => ConnectionEvent::Response(response),
            Err(status) => ConnectionEvent::Ended(status),
        });
        (self.events, self.requests) = (events.boxed_local(), Some(tx));
    }

    /// Starts the back-off before the next stream.
    pub fn retry(&mut self) {
        self.lost_since.get_or_insert_with(Instant::now);
        (self.events, self.requests) = (retry_after(self.backoff.next_delay()), None);
    }

    /// Stops retrying until [`TerminalConnection::open`] is called.
    pub fn park(&mut self) {
        self.mark_working();
        (self.events, self.requests) = (stream::pending().boxed_local(), None);
    }

    /// Records that the stream works and resets the back-off.
    pub fn mark_working(&mut self) {
        self.lost_since = None;
        self.backoff.reset();
    }

    /// Returns when the connection was lost, or `None` while it works or is parked.
    pub fn lost_since(&self) -> Option<Instant> {
        self.lost_since
    }

    /// Returns the next event. Cancel-safe.
    pub async fn next(&mut self) -> ConnectionEvent {
        match self.events.next().await {
            Some(event) => event,
            None => pending().await,
        }
    }

    /// Reserves space for one request on the present stream. Never resolves while there is none.
    pub fn send_permit(&self) -> impl Future<Output = mpsc::OwnedPermit<AttachRequest>> + use<> {
        let requests = self.requests.clone();
        async move {
            let Some(requests) = requests else { return pending().await };
            match requests.reserve_owned().await {
                Ok(permit) => permit,
                // The stream has ended; `next` reports it.
                Err(_) => pending().await,
            }
        }
    }
}

fn retry_after(delay: Duration) -> LocalBoxStream<'static, ConnectionEvent> {
    sleep(delay).map(|()| ConnectionEvent::Retry).into_stream().boxed_local()
}

impl std::fmt::Debug for TerminalConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TerminalConnection").field("lost_since", &self.lost_since).finish_non_exhaustive()
    }
}
