//! Connects to one remote terminal by a sequence of Attach streams. Each replaces one that broke.

use std::{future::pending, pin::Pin};

use futures_util::future::LocalBoxFuture;
use podling_proto::agent::v1::{AttachOpen, AttachRequest, AttachResponse, attach_request::Request};
use tokio::{
    sync::mpsc,
    time::{Instant, Sleep, sleep},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::{backoff::RetryBackoff, client::WorkspaceClient};

/// Capacity of the request channel of a stream. When it is full, input stays in the outbox.
const QUEUE: usize = 16;

type OpenCall = LocalBoxFuture<'static, Result<Streaming<AttachResponse>, Status>>;

/// Opens, reads and reopens Attach streams of one terminal.
pub struct TerminalConnection {
    workspace_client: WorkspaceClient,
    state: AttachStreamState,
    backoff: RetryBackoff,
    lost_since: Option<Instant>,
}

enum AttachStreamState {
    /// There is neither a stream nor a retry until [`TerminalConnection::open`] is called.
    Parked,
    /// Backing off until the next attempt.
    Waiting(Pin<Box<Sleep>>),
    Opening(OpenCall, mpsc::Sender<AttachRequest>),
    Open(Box<Streaming<AttachResponse>>, mpsc::Sender<AttachRequest>),
}

/// Change of a connection, returned by [`TerminalConnection::next`].
#[derive(Debug)]
pub enum ConnectionEvent {
    /// The back-off is over. The caller must call [`TerminalConnection::open`].
    Retry,
    Opened,
    Response(AttachResponse),
    /// The stream ended or could not be opened.
    Ended(Status),
}

impl TerminalConnection {
    /// Creates a connection that reports [`ConnectionEvent::Retry`] at once.
    pub fn new(workspace_client: WorkspaceClient) -> Self {
        let state = AttachStreamState::Waiting(Box::pin(sleep(std::time::Duration::ZERO)));
        Self { workspace_client, state, backoff: RetryBackoff::default(), lost_since: None }
    }

    /// Opens a stream. Wakes a sleeping workspace only if `wakes` is set.
    pub fn open(&mut self, open: AttachOpen, wakes: bool) {
        let (tx, rx) = mpsc::channel(QUEUE);
        let first = AttachRequest { request: Some(Request::Open(open)) };
        // Cannot fail: the channel is new and empty.
        let _ = tx.try_send(first);
        let client = &self.workspace_client;
        let mut terminals = if wakes { client.terminals() } else { client.without_waking().terminals() };
        let opening =
            async move { terminals.attach(ReceiverStream::new(rx)).await.map(tonic::Response::into_inner) };
        self.state = AttachStreamState::Opening(Box::pin(opening), tx);
    }

    /// Starts the back-off before the next stream.
    pub fn retry(&mut self) {
        self.lost_since.get_or_insert_with(Instant::now);
        self.state = AttachStreamState::Waiting(Box::pin(sleep(self.backoff.next_delay())));
    }

    /// Stops retrying until [`TerminalConnection::open`] is called.
    pub fn park(&mut self) {
        self.mark_working();
        self.state = AttachStreamState::Parked;
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
        match &mut self.state {
            AttachStreamState::Parked => pending().await,
            AttachStreamState::Waiting(until) => {
                until.await;
                ConnectionEvent::Retry
            }
            AttachStreamState::Opening(opening, tx) => match opening.await {
                Ok(stream) => {
                    self.state = AttachStreamState::Open(Box::new(stream), tx.clone());
                    ConnectionEvent::Opened
                }
                Err(status) => ConnectionEvent::Ended(status),
            },
            AttachStreamState::Open(stream, _) => match stream.message().await {
                Ok(Some(response)) => ConnectionEvent::Response(response),
                Ok(None) => {
                    ConnectionEvent::Ended(Status::unavailable("the stream ended before the terminal"))
                }
                Err(status) => ConnectionEvent::Ended(status),
            },
        }
    }

    /// Reserves space for one request on the open stream. Never resolves while no stream is open.
    pub fn send_permit(&self) -> impl Future<Output = mpsc::OwnedPermit<AttachRequest>> + use<> {
        let tx = match &self.state {
            AttachStreamState::Open(_, tx) => Some(tx.clone()),
            _ => None,
        };
        async move {
            match tx {
                Some(tx) => match tx.reserve_owned().await {
                    Ok(permit) => permit,
                    // The stream has ended; `next` reports it.
                    Err(_) => pending().await,
                },
                None => pending().await,
            }
        }
    }
}

impl std::fmt::Debug for TerminalConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TerminalConnection").field("lost_since", &self.lost_since).finish_non_exhaustive()
    }
}
