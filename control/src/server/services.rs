//! The gRPC services of a listener, each registered with its bounds. A message that is longer than its
//! service's limit is refused when its length is announced, before memory is allocated for it. The
//! body of a unary request must arrive within [`BODY_TIMEOUT`].
//!
//! The listeners' routers take services in no other form, so that no service is without bounds.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::Router;
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use podling_proto::{
    control::v1::{
        agents_server::{Agents, AgentsServer},
        tokens_server::{Tokens, TokensServer},
        workspace_archives_server::{WorkspaceArchives, WorkspaceArchivesServer},
        workspaces_server::{Workspaces, WorkspacesServer},
    },
    error::{Reason, WireError},
    error_response::WireProtocol,
};
use tokio::time::{Sleep, sleep};
use tonic::{
    Code, Status,
    body::Body,
    server::NamedService,
    service::{LayerExt, Routes},
};
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_reflection::server::{v1, v1alpha};
use tower::{
    Service,
    util::{MapRequestLayer, MapResponseLayer},
};

/// Longest message of a request in bytes, unless its service has another limit. Longest body of a JSON
/// request. The longest valid body contains an environment of 16 KiB, in which JSON's escapes
/// (`\u001b`) may take six bytes for one.
pub const MAX_MESSAGE_BYTES: usize = 128 * 1024;
/// Time for the whole body of a unary request to arrive. Then the call fails with `REQUEST_TIMEOUT`.
pub(crate) const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The gRPC services that one listener serves.
#[derive(Debug, Default)]
pub struct GrpcServices(Routes);

/// A generated gRPC server whose messages can be limited.
pub trait MessageLimit {
    /// Sets the length of the longest message that the server decodes, in bytes.
    #[must_use]
    fn with_message_limit(self, bytes: usize) -> Self;
}

/// Implements [`MessageLimit`] by the method that all generated servers have.
macro_rules! message_limit {
    ($($server:ty: $service:path),* $(,)?) => {$(
        impl<T: $service> MessageLimit for $server {
            fn with_message_limit(self, bytes: usize) -> Self {
                self.max_decoding_message_size(bytes)
            }
        }
    )*};
}

message_limit! {
    AgentsServer<T>: Agents,
    HealthServer<T>: Health,
    TokensServer<T>: Tokens,
    WorkspaceArchivesServer<T>: WorkspaceArchives,
    WorkspacesServer<T>: Workspaces,
    v1::ServerReflectionServer<T>: v1::ServerReflection,
    v1alpha::ServerReflectionServer<T>: v1alpha::ServerReflection,
}

impl GrpcServices {
    /// Registers a service whose requests are single messages of at most `limit` bytes.
    #[must_use]
    pub fn unary<S>(self, service: S, limit: usize) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + MessageLimit,
        S: NamedService + Clone + Send + Sync + 'static,
        S::Future: Send,
    {
        let explained = MapResponseLayer::new(move |response| explain_refusal(response, limit))
            .named_layer(service.with_message_limit(limit));
        let timed = MapRequestLayer::new(|request: Request<Body>| request.map(TimedBody::limit))
            .named_layer(explained);
        Self(self.0.add_service(timed))
    }

    /// Registers a service whose requests are streams of messages of at most `limit` bytes. No deadline
    /// is set, so that a stream may stay open as long as its client wants.
    #[must_use]
    pub fn streaming<S>(self, service: S, limit: usize) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + MessageLimit,
        S: NamedService + Clone + Send + Sync + 'static,
        S::Future: Send,
    {
        Self(self.0.add_service(service.with_message_limit(limit)))
    }

    pub fn into_router(self) -> Router {
        self.0.into_axum_router().with_state(())
    }
}

/// Returns the error of a request that is longer than `limit` bytes.
pub(crate) fn too_large(limit: usize, what: &str) -> WireError {
    let message = format!("{what} is longer than {limit} bytes");
    WireError::new(Reason::TooLarge, message).with("limit", limit).with("what", what)
}

/// Returns the error of a request whose body has not ended after [`BODY_TIMEOUT`].
pub(crate) fn body_timeout() -> WireError {
    let seconds = BODY_TIMEOUT.as_secs();
    let message = format!("the request's body did not arrive completely within {seconds} s; send it again");
    WireError::new(Reason::RequestTimeout, message).with("limit_seconds", seconds)
}

/// Adds the reason to tonic's refusal of a message above the limit, which is an OUT_OF_RANGE without
/// details. All errors of the services have details.
fn explain_refusal(response: Response<Body>, limit: usize) -> Response<Body> {
    match Status::from_header_map(response.headers()) {
        Some(status) if status.code() == Code::OutOfRange && status.details().is_empty() => {
            WireProtocol::Grpc.error_response(too_large(limit, "the message")).map(|_: String| Body::empty())
        }
        _ => response,
    }
}

/// A request's body that fails if it has not ended within [`BODY_TIMEOUT`].
struct TimedBody {
    body: Body,
    deadline: Pin<Box<Sleep>>,
}

impl TimedBody {
    fn limit(body: Body) -> Body {
        Body::new(Self { body, deadline: Box::pin(sleep(BODY_TIMEOUT)) })
    }
}

impl http_body::Body for TimedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        // First, so that a client that sends single bytes gains no time.
        if self.deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err(body_timeout().into())));
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body as HttpBody;
    use futures_util::{StreamExt, stream};
    use http_body_util::StreamBody;
    use podling_proto::error::reason;
    use tokio::time::Instant;
    use tonic_health::server::{HealthReporter, HealthService};
    use tower::ServiceExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn body_that_arrives_byte_by_byte_gains_no_time() {
        let health = HealthServer::new(HealthService::from_health_reporter(HealthReporter::new()));
        let router = GrpcServices::default().unary(health, MAX_MESSAGE_BYTES).into_router();
        let byte = |byte: &'static [u8]| Ok::<_, Infallible>(Frame::data(Bytes::from_static(byte)));
        let bytes = stream::repeat(()).then(move |()| async move {
            sleep(Duration::from_secs(1)).await;
            byte(b"x")
        });
        let body = stream::iter([byte(b"\0\0\0\x01\0")]).chain(bytes);
        let request =
            Request::post("/grpc.health.v1.Health/Check").header("content-type", "application/grpc");
        let request = request.body(HttpBody::new(StreamBody::new(Box::pin(body)))).expect("request");
        let started = Instant::now();
        let Ok(response) = router.oneshot(request).await;
        let status = Status::from_header_map(response.headers()).expect("status");
        assert_eq!((status.code(), reason(&status)), (Code::DeadlineExceeded, Some(Reason::RequestTimeout)));
        assert_eq!(started.elapsed(), BODY_TIMEOUT);
    }
}
