//! Relays an exchange: filters the headers in both directions, and passes the two bodies on with
//! back-pressure and trailers. A cancellation at either end reaches the other.
//!
//! Removes hop-by-hop headers, the caller's secrets, and response headers that would affect the
//! gateway's whole origin.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::{BufMut, Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Uri, Version,
    header::{
        ALT_SVC, AUTHORIZATION, CONNECTION, CONTENT_SECURITY_POLICY, COOKIE, EXPECT, FORWARDED, HOST, ORIGIN,
        PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, REFERER, SET_COOKIE, STRICT_TRANSPORT_SECURITY, TE, TRAILER,
        TRANSFER_ENCODING, UPGRADE, X_CONTENT_TYPE_OPTIONS,
    },
    request, response,
    uri::{Authority, Scheme},
};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use podling_proto::{
    error::{Reason, WireError},
    error_response::{WireProtocol, trailers},
    metadata,
};
use tokio::sync::oneshot;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::{LostAgent, pool::PooledStream, shutting_down};
use crate::{dial::AGENT_NAME, metrics::ExchangeOutcome};

/// First byte of a gRPC-web frame that carries trailers.
const WEB_TRAILERS: u8 = 0x80;
/// Headers of one connection (RFC 9110, 7.6.1).
const HOP_BY_HOP: [HeaderName; 9] = [
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    CONNECTION,
];
/// Secrets of the caller, and headers for the gateway itself.
const NOT_FOR_AGENTS: [HeaderName; 11] = [
    AUTHORIZATION,
    COOKIE,
    EXPECT,
    FORWARDED,
    HOST,
    ORIGIN,
    REFERER,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-real-ip"),
    HeaderName::from_static(metadata::WORKSPACE),
    HeaderName::from_static(metadata::WAKE),
];
/// Headers that would apply to the gateway's whole origin, which serves other workspaces too.
const NOT_FOR_CALLERS: [HeaderName; 9] = [
    ALT_SVC,
    SET_COOKIE,
    STRICT_TRANSPORT_SECURITY,
    HeaderName::from_static("accept-ch"),
    HeaderName::from_static("clear-site-data"),
    HeaderName::from_static("nel"),
    HeaderName::from_static("report-to"),
    HeaderName::from_static("reporting-endpoints"),
    HeaderName::from_static("service-worker-allowed"),
];

/// Errors that end a body early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RelayError {
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
pub(crate) struct RelayedRequest {
    body: Incoming,
    answered: oneshot::Receiver<()>,
}

/// Held with the response. Dropping it aborts the request to the agent, unless its body has ended.
pub(super) type RequestGuard = oneshot::Sender<()>;

impl RelayedRequest {
    pub(crate) fn new(body: Incoming) -> (Self, RequestGuard) {
        let (guard, answered) = oneshot::channel();
        (Self { body, answered }, guard)
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
    pub(super) body: Incoming,
    pub(super) protocol: WireProtocol,
    pub(super) outcome: ExchangeOutcome,
    /// Whether the gRPC status has arrived, in the headers or the trailers.
    pub(super) complete: bool,
    pub(super) ended: bool,
    /// Ends the body when the gateway shuts down.
    pub(super) shutdown: Pin<Box<WaitForCancellationFutureOwned>>,
    pub(super) lost_agent: LostAgent,
    /// Held as long as the exchange lasts.
    pub(super) _guards: (PooledStream, RequestGuard),
}

impl RelayedResponse {
    fn end_with_lost_agent(&mut self, error: RelayError) -> Result<Frame<Bytes>, RelayError> {
        let why = self.lost_agent.explain(agent_lost());
        self.end_with_error(why, error)
    }

    fn end_with_error(&mut self, why: WireError, error: RelayError) -> Result<Frame<Bytes>, RelayError> {
        self.ended = true;
        self.outcome.set_error(&why);
        final_error_frame(self.protocol, why).ok_or(error)
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
                ready!(self.shutdown.as_mut().poll(cx));
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

/// Returns the last frame of a response that has begun. `None` for plain HTTP, where only an aborted
/// body shows that it is incomplete.
fn final_error_frame(protocol: WireProtocol, error: WireError) -> Option<Frame<Bytes>> {
    match protocol {
        WireProtocol::Grpc => Some(Frame::trailers(trailers(error))),
        WireProtocol::GrpcWeb => Some(Frame::data(web_trailers(error))),
        WireProtocol::GrpcWebText => Some(Frame::data(BASE64.encode(web_trailers(error)).into())),
        WireProtocol::Http => None,
    }
}

fn web_trailers(error: WireError) -> Bytes {
    let mut lines = BytesMut::new();
    for (name, value) in &trailers(error) {
        lines.extend_from_slice(name.as_str().as_bytes());
        lines.extend_from_slice(b": ");
        lines.extend_from_slice(value.as_bytes());
        lines.extend_from_slice(b"\r\n");
    }
    let mut frame = BytesMut::with_capacity(lines.len() + 5);
    frame.put_u8(WEB_TRAILERS);
    // Trailers have a few KiB at most, so the length fits.
    frame.put_u32(u32::try_from(lines.len()).unwrap_or(u32::MAX));
    frame.extend_from_slice(&lines);
    frame.freeze()
}

/// Turns a caller's request into the gateway's request to an agent.
pub(super) fn to_agent(parts: &mut request::Parts, protocol: WireProtocol, authorization: HeaderValue) {
    strip(&mut parts.headers, &NOT_FOR_AGENTS);
    parts.headers.insert(AUTHORIZATION, authorization);
    if protocol == WireProtocol::Grpc {
        parts.headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    uri.scheme = Some(Scheme::HTTPS);
    uri.authority = Some(Authority::from_static(AGENT_NAME));
    // The target of `OPTIONS *` is not valid with an authority. All other targets are paths.
    uri.path_and_query = uri.path_and_query.filter(|path| path.as_str().starts_with('/'));
    parts.uri = Uri::from_parts(uri).unwrap_or_default();
    parts.version = Version::HTTP_2;
}

/// Turns an agent's response into the gateway's response.
pub(super) fn to_caller(parts: &mut response::Parts, protocol: WireProtocol) {
    strip(&mut parts.headers, &NOT_FOR_CALLERS);
    // Only the gateway decides which pages may read responses.
    let cors: Vec<_> =
        parts.headers.keys().filter(|name| name.as_str().starts_with("access-control-")).cloned().collect();
    for name in cors {
        parts.headers.remove(name);
    }
    if protocol == WireProtocol::Http {
        // A workspace's file must never run as a page of the gateway's origin.
        parts.headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
        parts.headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    }
    parts.version = Version::default();
}

fn strip(headers: &mut HeaderMap, also: &[HeaderName]) {
    // The Connection header names further headers of this hop.
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP).chain(also) {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};

    use super::*;

    #[test]
    fn agent_receives_no_secrets_of_the_caller() {
        let request = Request::put("http://podling.example:7411/files/a?x=1")
            .header("authorization", "Bearer user")
            .header("cookie", "session=1")
            .header("podling-workspace", "abc")
            .header("podling-wake", "never")
            .header("x-forwarded-for", "192.0.2.1")
            .header("connection", "close, X-Secret-Hop")
            .header("x-secret-hop", "1")
            .header("transfer-encoding", "chunked")
            .header("te", "gzip")
            .header("host", "podling.example")
            .header("content-type", "text/plain")
            .header("grpc-timeout", "5S")
            .header("x-my-metadata", "kept");
        let mut parts = request.body(()).expect("request").into_parts().0;
        to_agent(&mut parts, WireProtocol::Http, HeaderValue::from_static("Bearer agent"));
        let mut names: Vec<_> = parts.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["authorization", "content-type", "grpc-timeout", "x-my-metadata"]);
        assert_eq!(parts.headers["authorization"], "Bearer agent");
        assert_eq!(parts.uri.to_string(), "https://podling-agent/files/a?x=1");
        to_agent(&mut parts, WireProtocol::Grpc, HeaderValue::from_static("Bearer agent"));
        assert_eq!(parts.headers["te"], "trailers");
    }

    #[test]
    fn agent_cannot_set_headers_of_the_gateways_origin() {
        let response = Response::builder()
            .header("set-cookie", "a=b")
            .header("access-control-allow-origin", "*")
            .header("alt-svc", "h3=\":443\"")
            .header("nel", "{\"report_to\":\"theirs\"}")
            .header("report-to", "{\"group\":\"theirs\"}")
            .header("service-worker-allowed", "/")
            .header("content-type", "text/html")
            .header("etag", "1");
        let mut parts = response.body(()).expect("response").into_parts().0;
        to_caller(&mut parts, WireProtocol::Http);
        let mut names: Vec<_> = parts.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-security-policy", "content-type", "etag", "x-content-type-options"]);
    }

    #[test]
    fn grpc_web_response_ends_with_trailer_frame() {
        let last_data = |protocol| {
            let error = WireError::new(Reason::AgentUnreachable, "kein Weg über die Brücke");
            final_error_frame(protocol, error).and_then(|frame| frame.into_data().ok())
        };
        let frame = last_data(WireProtocol::GrpcWeb).expect("data");
        assert_eq!(frame[0], 0x80);
        let length = u32::from_be_bytes([frame[1], frame[2], frame[3], frame[4]]) as usize;
        assert_eq!(length, frame.len() - 5);
        let text = String::from_utf8(frame[5..].to_vec()).expect("ascii");
        assert!(text.contains("grpc-status: 14\r\n") && text.ends_with("\r\n"), "{text}");
        let encoded = last_data(WireProtocol::GrpcWebText).expect("data");
        assert_eq!(BASE64.decode(encoded).expect("base64"), frame);
        assert!(last_data(WireProtocol::Http).is_none());
    }
}
