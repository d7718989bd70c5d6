//! Calls of clients that are under way: whether each of them waits for its client, and how they end
//! when the agent shuts down.
//!
//! The bodies of request and response show whether a call waits. If a request body is polled and
//! has no data, the call waits for the client. A response body whose frame is not followed by
//! another poll waits until the client has taken enough of the response: HTTP/2 polls only while
//! the stream has window.
//!
//! When the agent shuts down, open response streams end with a status. A call that its client waits
//! for learns that the workspace fell asleep, and why.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum::{
    body::{Body, HttpBody},
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use bytes::Bytes;
use http::{HeaderMap, Method};
use http_body::{Frame, SizeHint};
use podling_proto::{error::WireError, method, text, v1::Reason};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;

use crate::{
    activity::{
        calls::{CallGuard, CallKind, ClientCalls},
        notices::SleepCause,
    },
    sleep::SleepCoordinator,
};

/// Records the call if it is use of the workspace. Middleware, behind authorization.
pub async fn track(State(calls): State<ClientCalls>, request: Request, next: Next) -> Response {
    let Some(kind) = call_kind(request.method(), request.uri().path()) else {
        return next.run(request).await;
    };
    let call = Arc::new(calls.begin(kind));
    let sending = Arc::clone(&call);
    let request = request.map(|body| Body::new(TrackedBody { body, part: CallPart::Request, call: sending }));
    let response = next.run(request).await;
    response.map(|body| Body::new(TrackedBody { body, part: CallPart::Response, call }))
}

/// Returns what a client of this call waits for, or `None` if the call is not use.
fn call_kind(http: &Method, path: &str) -> Option<CallKind> {
    if let Some(method) = method::find(path) {
        return method.in_use.then(|| match path {
            _ if path.starts_with("/podling.agent.v1.Processes/") => CallKind::Command,
            _ if path.starts_with("/podling.agent.v1.Archives/") => CallKind::Archive,
            _ => CallKind::Files,
        });
    }
    match *http {
        Method::GET if path == "/export.zip" => Some(CallKind::Archive),
        Method::GET | Method::PUT if path.starts_with("/files/") => Some(CallKind::Files),
        _ => None,
    }
}

/// A body that records with each poll whether its call waits for the client.
struct TrackedBody {
    body: Body,
    part: CallPart,
    call: Arc<CallGuard>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum CallPart {
    Request,
    Response,
}

impl HttpBody for TrackedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        match self.part {
            CallPart::Request => self.call.await_request(frame.is_pending()),
            // The poll shows that the client has taken what it was offered before.
            CallPart::Response => self.call.offer_response(matches!(frame, Poll::Ready(Some(Ok(_))))),
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for TrackedBody {
    fn drop(&mut self) {
        if self.part == CallPart::Request {
            self.call.await_request(false);
        }
    }
}

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
        // Frames that are ready are still sent, such as an exit or the last output. A transfer
        // could go on for longer than the shutdown waits, so it ends here.
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
            (Some(_), cause) => text::fell_asleep_error(cause),
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

#[cfg(test)]
mod tests {
    use std::{
        io,
        time::{Duration, Instant},
    };

    use futures_util::{StreamExt, stream};
    use http_body_util::BodyExt;
    use tokio::time::timeout;

    use super::*;
    use crate::activity::calls::STALLED_AFTER;

    /// Long enough for one poll of a body that has no data.
    const MOMENT: Duration = Duration::from_millis(10);

    fn tracked(body: Body) -> (ClientCalls, TrackedBody) {
        let calls = ClientCalls::default();
        let call = Arc::new(calls.begin(CallKind::Command));
        (calls, TrackedBody { body, part: CallPart::Response, call })
    }

    fn counts_later(calls: &ClientCalls) -> bool {
        let later = Instant::now() + STALLED_AFTER + Duration::from_secs(1);
        let signals = calls.signals(None, Duration::from_secs(3600), later);
        signals.iter().any(|signal| signal.until.is_some_and(|until| until > later))
    }

    #[tokio::test]
    async fn response_that_is_not_taken_stalls_its_call() {
        let parts = stream::iter([Ok::<_, io::Error>("a"), Ok("b")]);
        let (calls, mut response) = tracked(Body::from_stream(parts.chain(stream::pending())));
        response.frame().await.expect("a frame").expect("data");
        assert!(!counts_later(&calls), "the second frame is never taken");
        response.frame().await.expect("a frame").expect("data");
        assert!(timeout(MOMENT, response.frame()).await.is_err());
        assert!(counts_later(&calls), "the client waits for the agent");
        drop(response);
        assert!(!counts_later(&calls), "the call has ended");
    }

    #[tokio::test]
    async fn upload_without_data_stalls_its_call() {
        let calls = ClientCalls::default();
        let call = Arc::new(calls.begin(CallKind::Files));
        let parts = stream::iter([Ok::<_, io::Error>("a")]);
        let body = Body::from_stream(parts.chain(stream::pending()));
        let mut request = TrackedBody { body, part: CallPart::Request, call: Arc::clone(&call) };
        request.frame().await.expect("a frame").expect("data");
        assert!(counts_later(&calls), "the agent works on what it has");
        assert!(timeout(MOMENT, request.frame()).await.is_err());
        assert!(!counts_later(&calls), "the agent waits for the client");
        drop(request);
        assert!(counts_later(&calls), "the agent needs no more data");
    }

    #[test]
    fn only_calls_that_a_client_waits_for_are_use() {
        let kind = |path: &str| call_kind(&Method::POST, path);
        assert_eq!(kind("/podling.agent.v1.Processes/Watch"), Some(CallKind::Command));
        assert_eq!(kind("/podling.agent.v1.Archives/Create"), Some(CallKind::Archive));
        assert_eq!(kind("/podling.agent.v1.Files/Read"), Some(CallKind::Files));
        for looks_on in
            ["Terminals/Attach", "Terminals/Watch", "Activity/Watch", "Processes/List", "Files/Stat"]
        {
            assert_eq!(kind(&format!("/podling.agent.v1.{looks_on}")), None, "{looks_on}");
        }
        assert_eq!(call_kind(&Method::GET, "/export.zip"), Some(CallKind::Archive));
        assert_eq!(call_kind(&Method::PUT, "/files/a"), Some(CallKind::Files));
        assert_eq!(call_kind(&Method::HEAD, "/files/a"), None);
        assert_eq!(call_kind(&Method::GET, "/metrics"), None);
    }
}
