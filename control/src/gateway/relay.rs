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

use super::shutting_down;
use crate::{error_response::WireProtocol, metrics::ExchangeOutcome};

/// Why a body ends before its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum RelayError {
    /// The caller is gone, or has its answer.
    #[error("the caller is gone")]
    CallerGone,
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
pub(super) struct RelayedRequest {
    body: Incoming,
    answered: oneshot::Receiver<()>,
}

/// Kept with the answer: when it is dropped, the upload ends.
#[derive(Debug)]
pub(super) struct RequestGuard {
    _tell: oneshot::Sender<()>,
}

impl RelayedRequest {
    pub(super) fn new(body: Incoming) -> (Self, RequestGuard) {
        let (tell, answered) = oneshot::channel();
        (Self { body, answered }, RequestGuard { _tell: tell })
    }
}

impl Body for RelayedRequest {
    type Data = Bytes;
    type Error = RelayError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RelayError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            return Poll::Ready(frame.map(|frame| frame.map_err(RelayError::from)));
        }
        // Nobody waits for an answer any more: an error resets the stream, so that the agent learns of it at once.
        ready!(Pin::new(&mut self.answered).poll(cx)).ok();
        Poll::Ready(Some(Err(RelayError::CallerGone)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// From the agent to the caller. If the agent breaks off, the caller reads why in its own protocol.
pub(super) struct RelayedResponse {
    body: Incoming,
    protocol: WireProtocol,
    outcome: ExchangeOutcome,
    /// A gRPC answer is whole once its trailers have come (or came as headers).
    whole: bool,
    ended: bool,
    shutdown: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    _kept: Option<Box<dyn Any + Send + Sync>>,
}

impl RelayedResponse {
    /// `whole`: the headers are all there is to say.
    pub(super) fn new(body: Incoming, protocol: WireProtocol, whole: bool, outcome: ExchangeOutcome) -> Self {
        Self { body, protocol, outcome, whole, ended: false, shutdown: None, _kept: None }
    }

    /// Ends when this is cancelled.
    pub(super) fn with_shutdown(mut self, shutdown: &CancellationToken) -> Self {
        self.shutdown = Some(Box::pin(shutdown.clone().cancelled_owned()));
        self
    }

    /// Keeps this as long as the exchange lasts.
    pub(super) fn with_guards(mut self, kept: impl Any + Send + Sync) -> Self {
        self._kept = Some(Box::new(kept));
        self
    }

    fn break_off(&mut self, why: WireError, error: RelayError) -> Result<Frame<Bytes>, RelayError> {
        self.ended = true;
        self.outcome.set_error(&why);
        self.protocol.final_error_frame(why).ok_or(error)
    }
}

impl Body for RelayedResponse {
    type Data = Bytes;
    type Error = RelayError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RelayError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(trailers) = frame.trailers_ref() {
                    self.whole = true;
                    self.outcome.set_trailers(trailers);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                tracing::debug!(%error, "an agent broke off");
                Poll::Ready(Some(self.break_off(lost(), RelayError::Http(error))))
            }
            // A reset may look like an end.
            Poll::Ready(None) if self.protocol == WireProtocol::Grpc && !self.whole => {
                Poll::Ready(Some(self.break_off(lost(), RelayError::Agent)))
            }
            Poll::Ready(None) => {
                self.ended = true;
                Poll::Ready(None)
            }
            Poll::Pending => {
                let Some(shutdown) = &mut self.shutdown else { return Poll::Pending };
                ready!(shutdown.as_mut().poll(cx));
                Poll::Ready(Some(self.break_off(shutting_down(), RelayError::Shutdown)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended || (self.body.is_end_stream() && (self.whole || self.protocol != WireProtocol::Grpc))
    }

    fn size_hint(&self) -> SizeHint {
        // A gRPC answer may end with trailers of ours where its body ended short.
        if self.protocol == WireProtocol::Http { self.body.size_hint() } else { SizeHint::default() }
    }
}

fn lost() -> WireError {
    WireError::new(
        Reason::AgentUnreachable,
        "the link to the workspace's agent broke; what runs in it may well go on: try again",
    )
}
