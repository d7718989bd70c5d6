//! Ends open response streams of all gRPC services with a status when the agent shuts down.

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
use podling_proto::{error::WireError, v1::Reason};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;

/// Ends responses with SHUTTING_DOWN in their trailers when `closing` is cancelled. Middleware.
pub async fn end_streams(State(closing): State<CancellationToken>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    if response.body().is_end_stream() {
        return response;
    }
    response.map(|body| Body::new(ShutdownBody { body, closing: Some(Box::pin(closing.cancelled_owned())) }))
}

/// A response body that ends early when the agent shuts down.
struct ShutdownBody {
    body: Body,
    /// `None` once the trailers are sent.
    closing: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
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
        // Frames that are ready are still sent, such as an exit or the last output.
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            return Poll::Ready(frame);
        }
        ready!(if closed { Poll::Ready(()) } else { Poll::Pending });
        self.closing = None;
        Poll::Ready(Some(Ok(Frame::trailers(shutting_down()))))
    }

    fn is_end_stream(&self) -> bool {
        self.closing.is_none() || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn shutting_down() -> HeaderMap {
    let status = Status::from(WireError::new(Reason::ShuttingDown, "the agent is shutting down"));
    let mut trailers = HeaderMap::new();
    if status.add_header(&mut trailers).is_err() {
        // The status cannot be encoded as headers, so only its code is sent.
        trailers.insert(Status::GRPC_STATUS, http::HeaderValue::from(tonic::Code::Unavailable as i32));
    }
    trailers
}
