//! The two bodies of an exchange on their way through: as they come, with back-pressure and trailers, and with cancellation
//! carried from either end to the other.

use std::{
    any::Any,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use podling_proto::error::{Reason, WireError};
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::going_down;
use crate::{metrics::Outcome, refusal::Protocol};

/// Why a body ends before its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum BrokenOff {
    /// The caller is gone, or has its answer.
    #[error("the caller is gone")]
    Caller,
    /// The other end broke off.
    #[error(transparent)]
    Http(#[from] hyper::Error),
    /// The link to the agent broke.
    #[error("the agent broke off")]
    Agent,
    /// The gateway goes down.
    #[error("the gateway is shutting down")]
    Shutdown,
}

/// From the caller to the agent.
#[derive(Debug)]
pub(super) struct Upload {
    body: Incoming,
    answered: oneshot::Receiver<()>,
}

/// Kept with the answer: when it is dropped, the upload ends.
#[derive(Debug)]
pub(super) struct Answered {
    _tell: oneshot::Sender<()>,
}

impl Upload {
    pub(super) fn new(body: Incoming) -> (Self, Answered) {
        let (tell, answered) = oneshot::channel();
        (Self { body, answered }, Answered { _tell: tell })
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            return Poll::Ready(frame.map(|frame| frame.map_err(BrokenOff::from)));
        }
        // Nobody waits for an answer any more: an error resets the stream, so that the agent learns of it at once.
        ready!(Pin::new(&mut self.answered).poll(cx)).ok();
        Poll::Ready(Some(Err(BrokenOff::Caller)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// From the agent to the caller. If the agent breaks off, the caller reads why in its own protocol.
pub(super) struct Relay {
    body: Incoming,
    protocol: Protocol,
    outcome: Outcome,
    /// A gRPC answer is whole once its trailers have come (or came as headers).
    whole: bool,
    ended: bool,
    shutdown: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    _kept: Option<Box<dyn Any + Send + Sync>>,
}

impl Relay {
    /// `whole`: the headers are all there is to say.
    pub(super) fn new(body: Incoming, protocol: Protocol, whole: bool, outcome: Outcome) -> Self {
        Self { body, protocol, outcome, whole, ended: false, shutdown: None, _kept: None }
    }

    /// Ends when this is cancelled.
    pub(super) fn until(mut self, shutdown: &CancellationToken) -> Self {
        self.shutdown = Some(Box::pin(shutdown.clone().cancelled_owned()));
        self
    }

    /// Keeps this as long as the exchange lasts.
    pub(super) fn keeping(mut self, kept: impl Any + Send + Sync) -> Self {
        self._kept = Some(Box::new(kept));
        self
    }

    fn break_off(&mut self, why: WireError, error: BrokenOff) -> Result<Frame<Bytes>, BrokenOff> {
        self.ended = true;
        self.outcome.broken(&why);
        self.protocol.break_off(why).ok_or(error)
    }
}

impl Body for Relay {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(trailers) = frame.trailers_ref() {
                    self.whole = true;
                    self.outcome.trailers(trailers);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                tracing::debug!(%error, "an agent broke off");
                Poll::Ready(Some(self.break_off(lost(), BrokenOff::Http(error))))
            }
            // A reset may look like an end.
            Poll::Ready(None) if self.protocol == Protocol::Grpc && !self.whole => {
                Poll::Ready(Some(self.break_off(lost(), BrokenOff::Agent)))
            }
            Poll::Ready(None) => {
                self.ended = true;
                Poll::Ready(None)
            }
            Poll::Pending => {
                let Some(shutdown) = &mut self.shutdown else { return Poll::Pending };
                ready!(shutdown.as_mut().poll(cx));
                Poll::Ready(Some(self.break_off(going_down(), BrokenOff::Shutdown)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended || (self.body.is_end_stream() && (self.whole || self.protocol != Protocol::Grpc))
    }

    fn size_hint(&self) -> SizeHint {
        // A gRPC answer may end with trailers of ours where its body ended short.
        if self.protocol == Protocol::Http { self.body.size_hint() } else { SizeHint::default() }
    }
}

fn lost() -> WireError {
    WireError::new(
        Reason::AgentUnreachable,
        "the link to the workspace's agent broke; what runs in it may well go on: try again",
    )
}
