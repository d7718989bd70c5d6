//! Ends open response streams of all gRPC services with a status when the agent shuts down. A call
//! that its client waits for learns that the workspace fell asleep, and why.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::{
    body::{Body, HttpBody},
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use podling_proto::{error::WireError, text, v1::Reason};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;

use super::call_tracking::call_kind;
use crate::{
    activity::{calls::CallKind, notices::SleepCause},
    api::activity::sleep_cause,
    sleep::SleepCoordinator,
};

/// When and why open streams end.
#[derive(Debug, Clone)]
pub struct StreamShutdown {
    /// Cancelled when the agent ends open response streams.
    pub closing: CancellationToken,
    /// Knows why the workspace falls asleep.
    pub sleep: SleepCoordinator,
}

/// Ends responses with a status in their trailers when `closing` is cancelled: FELL_ASLEEP if a
/// sleep ends a call that its client waits for, otherwise SHUTTING_DOWN. Middleware.
pub async fn end_streams(State(shutdown): State<StreamShutdown>, request: Request, next: Next) -> Response {
    let kind = call_kind(request.method(), request.uri().path());
    let response = next.run(request).await;
    if response.body().is_end_stream() {
        return response;
    }
    let closing = Some(Box::pin(shutdown.closing.cancelled_owned()));
    response.map(|body| Body::new(ShutdownBody { body, closing, kind, sleep: shutdown.sleep }))
}

/// A response body that ends early when the agent shuts down.
struct ShutdownBody {
    body: Body,
    /// `None` once the trailers are sent.
    closing: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    kind: Option<CallKind>,
    sleep: SleepCoordinator,
}

impl HttpBody for ShutdownBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(closing) = &mut self.closing else { return Poll::Ready(None) };
        let closed = closing.as_mut().poll(context).is_ready();
        // Frames that are ready are still sent, such as an exit or the last output. A transfer could
        // go on for longer than the shutdown waits, so it ends here.
        let is_transfer = matches!(self.kind, Some(CallKind::Archive | CallKind::Files));
        if !(closed && is_transfer)
            && let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context)
        {
            return Poll::Ready(frame);
        }
        ready!(if closed { Poll::Ready(()) } else { Poll::Pending });
        self.closing = None;
        let why = match (self.kind, self.sleep.end_cause()) {
            (None, _) | (_, SleepCause::Shutdown) => {
                WireError::new(Reason::ShuttingDown, "the agent is shutting down")
            }
            (Some(_), cause) => text::fell_asleep_error(sleep_cause(cause)),
        };
        Poll::Ready(Some(Ok(Frame::trailers(trailers(why)))))
    }

    fn is_end_stream(&self) -> bool {
        self.closing.is_none() || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn trailers(why: WireError) -> HeaderMap {
    let status = Status::from(why);
    let mut trailers = HeaderMap::new();
    if status.add_header(&mut trailers).is_err() {
        // The status cannot be encoded as headers, so only its code is sent.
        trailers.insert(Status::GRPC_STATUS, http::HeaderValue::from(tonic::Code::Unavailable as i32));
    }
    trailers
}
