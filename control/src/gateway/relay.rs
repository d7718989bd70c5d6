//! Relays the two bodies of an exchange with back-pressure and trailers. A cancellation at either
//! end reaches the other.

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

use super::{LostAgent, explain_lost, shutting_down};
use crate::{error_response::WireProtocol, metrics::ExchangeOutcome};

/// Errors that end a body early.
#[derive(Debug, thiserror::Error)]
pub(super) enum RelayError {
    /// The caller has disconnected, or has received its complete response.
    #[error("the caller disconnected")]
    CallerGone,
    #[error(transparent)]
    Http(#[from] hyper::Error),
    /// The connection to the agent failed.
    #[error("the agent closed the stream")]
    Agent,
    #[error("the gateway is shutting down")]
    Shutdown,
}

/// The request's body, from the caller to the agent.
#[derive(Debug)]
pub(super) struct RelayedRequest {
    body: Incoming,
    answered: oneshot::Receiver<()>,
}

/// Held with the response. When it is dropped, the request's body ends.
#[derive(Debug)]
pub(super) struct RequestGuard {
    _sender: oneshot::Sender<()>,
}

impl RelayedRequest {
    pub(super) fn new(body: Incoming) -> (Self, RequestGuard) {
        let (tell, answered) = oneshot::channel();
        (Self { body, answered }, RequestGuard { _sender: tell })
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
        // The caller no longer awaits the response. An error resets the stream, so that the agent
        // notices at once.
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

/// The response's body, from the agent to the caller. If the agent fails, the caller gets the error
/// in its own protocol.
pub(super) struct RelayedResponse {
    body: Incoming,
    protocol: WireProtocol,
    outcome: ExchangeOutcome,
    /// Whether the gRPC status has arrived, in the headers or the trailers.
    complete: bool,
    ended: bool,
    shutdown: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    lost_agent: Option<LostAgent>,
    _guards: Option<Box<dyn Any + Send + Sync>>,
}

impl RelayedResponse {
    /// Creates the body. `complete` means that the headers already hold the gRPC status.
    pub(super) fn new(
        body: Incoming,
        protocol: WireProtocol,
        complete: bool,
        outcome: ExchangeOutcome,
    ) -> Self {
        Self {
            body,
            protocol,
            outcome,
            complete,
            ended: false,
            shutdown: None,
            lost_agent: None,
            _guards: None,
        }
    }

    /// Ends the body when `shutdown` is cancelled.
    pub(super) fn with_shutdown(mut self, shutdown: &CancellationToken) -> Self {
        self.shutdown = Some(Box::pin(shutdown.clone().cancelled_owned()));
        self
    }

    /// Explains the end to the caller if the agent is lost. `None` for a call that is not in use.
    pub(super) fn with_lost_agent(mut self, lost: Option<LostAgent>) -> Self {
        self.lost_agent = lost;
        self
    }

    /// Holds `guards` as long as the exchange lasts.
    pub(super) fn with_guards(mut self, guards: impl Any + Send + Sync) -> Self {
        self._guards = Some(Box::new(guards));
        self
    }

    fn end_with_lost_agent(&mut self, error: RelayError) -> Result<Frame<Bytes>, RelayError> {
        let why = explain_lost(self.lost_agent.as_ref(), agent_lost());
        self.end_with_error(why, error)
    }

    fn end_with_error(&mut self, why: WireError, error: RelayError) -> Result<Frame<Bytes>, RelayError> {
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
                    self.complete = true;
                    self.outcome.set_trailers(trailers);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                tracing::debug!(%error, "agent stream failed");
                Poll::Ready(Some(self.end_with_lost_agent(RelayError::Http(error))))
            }
            // The body of a stream that was reset may end without an error. Only trailers prove
            // that a gRPC response is complete.
            Poll::Ready(None) if self.protocol == WireProtocol::Grpc && !self.complete => {
                Poll::Ready(Some(self.end_with_lost_agent(RelayError::Agent)))
            }
            Poll::Ready(None) => {
                self.ended = true;
                Poll::Ready(None)
            }
            Poll::Pending => {
                let Some(shutdown) = &mut self.shutdown else { return Poll::Pending };
                ready!(shutdown.as_mut().poll(cx));
                Poll::Ready(Some(self.end_with_error(shutting_down(), RelayError::Shutdown)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended || (self.body.is_end_stream() && (self.complete || self.protocol != WireProtocol::Grpc))
    }

    fn size_hint(&self) -> SizeHint {
        // The gateway may append an error to a gRPC response that ends early.
        if self.protocol == WireProtocol::Http { self.body.size_hint() } else { SizeHint::default() }
    }
}

fn agent_lost() -> WireError {
    WireError::new(
        Reason::AgentUnreachable,
        "the connection to the workspace's agent broke; its processes may still be running; retry",
    )
}
