//! One stream after another to the same terminal.

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

/// Requests on their way to the connection; when it is full, input is kept until there is room.
const QUEUE: usize = 16;

type OpenCall = LocalBoxFuture<'static, Result<Streaming<AttachResponse>, Status>>;

/// The way to the terminal.
pub struct TerminalConnection {
    workspace_client: WorkspaceClient,
    non_waking_client: WorkspaceClient,
    state: AttachStreamState,
    backoff: RetryBackoff,
    lost_since: Option<Instant>,
}

enum AttachStreamState {
    /// Until somebody wants it.
    Parked,
    /// Until it is time to try again.
    Waiting(Pin<Box<Sleep>>),
    Opening(OpenCall, mpsc::Sender<AttachRequest>),
    Open(Box<Streaming<AttachResponse>>, mpsc::Sender<AttachRequest>),
}

/// What happens on it.
#[derive(Debug)]
pub enum ConnectionEvent {
    /// It is time to open a stream: call [`TerminalConnection::open`].
    Retry,
    /// The stream is open.
    Opened,
    /// Something came.
    Response(AttachResponse),
    /// The stream has ended, or could not be opened.
    Ended(Status),
}

impl TerminalConnection {
    /// Not yet open.
    pub fn new(workspace_client: WorkspaceClient) -> Self {
        let state = AttachStreamState::Waiting(Box::pin(sleep(std::time::Duration::ZERO)));
        Self {
            non_waking_client: workspace_client.without_waking(),
            workspace_client,
            state,
            backoff: RetryBackoff::default(),
            lost_since: None,
        }
    }

    /// Opens a stream. Only if it `wakes`, because somebody asks for it, a workspace that sleeps is woken.
    pub fn open(&mut self, open: AttachOpen, wakes: bool) {
        let (tx, rx) = mpsc::channel(QUEUE);
        let first = AttachRequest { request: Some(Request::Open(open)) };
        // The channel is new and has room.
        let _ = tx.try_send(first);
        let mut terminals =
            if wakes { self.workspace_client.terminals() } else { self.non_waking_client.terminals() };
        let opening =
            async move { terminals.attach(ReceiverStream::new(rx)).await.map(tonic::Response::into_inner) };
        self.state = AttachStreamState::Opening(Box::pin(opening), tx);
    }

    /// The stream has broken: another one later.
    pub fn retry(&mut self) {
        self.lost_since.get_or_insert_with(Instant::now);
        self.state = AttachStreamState::Waiting(Box::pin(sleep(self.backoff.next_delay())));
    }

    /// Nothing is tried until somebody wants it: [`TerminalConnection::open`].
    pub fn park(&mut self) {
        self.lost_since = None;
        self.backoff.reset();
        self.state = AttachStreamState::Parked;
    }

    /// It works again.
    pub fn mark_working(&mut self) {
        self.lost_since = None;
        self.backoff.reset();
    }

    /// Since when it does not work.
    pub fn lost_since(&self) -> Option<Instant> {
        self.lost_since
    }

    /// What happens next. Dropped before it is done, nothing has.
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

    /// Room for one request on an open stream; waits for ever without one.
    pub fn send_permit(&self) -> impl Future<Output = mpsc::OwnedPermit<AttachRequest>> + use<> {
        let tx = match &self.state {
            AttachStreamState::Open(_, tx) => Some(tx.clone()),
            AttachStreamState::Parked | AttachStreamState::Waiting(_) | AttachStreamState::Opening(..) => {
                None
            }
        };
        async move {
            match tx {
                Some(tx) => match tx.reserve_owned().await {
                    Ok(permit) => permit,
                    // The stream has ended; its other half says so.
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
