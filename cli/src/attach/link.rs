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

use crate::{backoff::Backoff, client::Inside};

/// Requests on their way to the connection; when it is full, input is kept until there is room.
const QUEUE: usize = 16;

type Opening = LocalBoxFuture<'static, Result<Streaming<AttachResponse>, Status>>;

/// The way to the terminal.
pub struct Link {
    inside: Inside,
    quiet: Inside,
    state: State,
    backoff: Backoff,
    lost: Option<Instant>,
}

enum State {
    /// Until somebody wants it.
    Parked,
    /// Until it is time to try again.
    Waiting(Pin<Box<Sleep>>),
    Opening(Opening, mpsc::Sender<AttachRequest>),
    Open(Box<Streaming<AttachResponse>>, mpsc::Sender<AttachRequest>),
}

/// What happens on it.
#[derive(Debug)]
pub enum Event {
    /// It is time to open a stream: call [`Link::open`].
    Retry,
    /// The stream is open.
    Opened,
    /// Something came.
    Response(AttachResponse),
    /// The stream has ended, or could not be opened.
    Ended(Status),
}

impl Link {
    /// Not yet open.
    pub fn new(inside: Inside) -> Self {
        let state = State::Waiting(Box::pin(sleep(std::time::Duration::ZERO)));
        Self { quiet: inside.quiet(), inside, state, backoff: Backoff::default(), lost: None }
    }

    /// Opens a stream. Only if it `wakes`, because somebody asks for it, a workspace that sleeps is woken.
    pub fn open(&mut self, open: AttachOpen, wakes: bool) {
        let (tx, rx) = mpsc::channel(QUEUE);
        let first = AttachRequest { request: Some(Request::Open(open)) };
        // The channel is new and has room.
        let _ = tx.try_send(first);
        let mut terminals = if wakes { self.inside.terminals() } else { self.quiet.terminals() };
        let opening =
            async move { terminals.attach(ReceiverStream::new(rx)).await.map(tonic::Response::into_inner) };
        self.state = State::Opening(Box::pin(opening), tx);
    }

    /// The stream has broken: another one later.
    pub fn retry(&mut self) {
        self.lost.get_or_insert_with(Instant::now);
        self.state = State::Waiting(Box::pin(sleep(self.backoff.step())));
    }

    /// Nothing is tried until somebody wants it: [`Link::open`].
    pub fn park(&mut self) {
        self.lost = None;
        self.backoff.reset();
        self.state = State::Parked;
    }

    /// It works again.
    pub fn works(&mut self) {
        self.lost = None;
        self.backoff.reset();
    }

    /// Since when it does not work.
    pub fn lost(&self) -> Option<Instant> {
        self.lost
    }

    /// What happens next. Dropped before it is done, nothing has.
    pub async fn next(&mut self) -> Event {
        match &mut self.state {
            State::Parked => pending().await,
            State::Waiting(until) => {
                until.await;
                Event::Retry
            }
            State::Opening(opening, tx) => match opening.await {
                Ok(stream) => {
                    self.state = State::Open(Box::new(stream), tx.clone());
                    Event::Opened
                }
                Err(status) => Event::Ended(status),
            },
            State::Open(stream, _) => match stream.message().await {
                Ok(Some(response)) => Event::Response(response),
                Ok(None) => Event::Ended(Status::unavailable("the stream ended before the terminal")),
                Err(status) => Event::Ended(status),
            },
        }
    }

    /// Room for one request on an open stream; waits for ever without one.
    pub fn room(&self) -> impl Future<Output = mpsc::OwnedPermit<AttachRequest>> + use<> {
        let tx = match &self.state {
            State::Open(_, tx) => Some(tx.clone()),
            State::Parked | State::Waiting(_) | State::Opening(..) => None,
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

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("lost", &self.lost).finish_non_exhaustive()
    }
}
