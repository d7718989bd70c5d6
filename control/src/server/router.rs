//! The router of the public listener. It authenticates the caller before any handler runs; only
//! health checks need no token. It also sets CORS headers, and rejects requests that the control
//! plane and a proxy or an agent could interpret differently.
//!
//! Pages of the configured origins may send calls with tokens, but never with cookies.
//!
//! The length of a request needs no check. If a request has both `Content-Length` and chunked
//! encoding, hyper uses the chunked encoding and closes the connection afterwards.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Body, extract::State, middleware::map_response_with_state, response::IntoResponse};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{
        AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH, LOCATION,
        RANGE, RETRY_AFTER,
    },
};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use podling_proto::{
    error::{Reason, WireError},
    error_response::WireProtocol,
    metadata, method,
    token::bearer,
    v1::Verb,
};
use tokio_util::sync::CancellationToken;
use tower::{Layer, Service, ServiceExt};
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::{MAX_HEADER_BYTES, connections::ConnectionState, services::GrpcServices};
use crate::{
    api::json,
    gateway::{Gateway, is_health_or_reflection},
    identity::ControlIdentity,
    metrics::ControlMetrics,
    principal::Principal,
};

const METRICS: &str = "/metrics";
/// Liveness: always 200 while the process runs.
const HEALTHZ: &str = "/healthz";
/// Readiness: 200, or 503 once the server is draining.
const READYZ: &str = "/readyz";
/// The only RPC without a token, for load balancers.
const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";
/// Time for which a browser may cache a preflight response.
const MAX_AGE: Duration = Duration::from_secs(60 * 60);
/// Bytes that HTTP/2 counts for each header beyond its name and value (RFC 9113, 6.5.2).
const HEADER_OVERHEAD: usize = 32;
/// Headers that may occur only once. Of two values, one program might use the first and another
/// program the last.
const ONCE: [HeaderName; 3] =
    [AUTHORIZATION, HeaderName::from_static(metadata::WORKSPACE), HeaderName::from_static(metadata::WAKE)];

/// Fails with `BAD_FIELD` if a header of [`ONCE`] is repeated, the headers are too large, or the
/// method is CONNECT.
fn check_request<B>(request: &Request<B>) -> Result<(), WireError> {
    let bad =
        |field: &str, message: String| Err(WireError::new(Reason::BadField, message).with("field", field));
    // HTTP/2 has enforced this limit already; HTTP/1 only bounds its buffer.
    let size =
        |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + HEADER_OVERHEAD;
    let bytes: usize = request.headers().iter().map(size).sum();
    if bytes > MAX_HEADER_BYTES as usize {
        return bad(
            "headers",
            format!("the headers have {bytes} bytes; at most {MAX_HEADER_BYTES} are allowed"),
        );
    }
    if let Some(name) = ONCE.iter().find(|name| request.headers().get_all(*name).iter().nth(1).is_some()) {
        return bad(name.as_str(), format!("the header {name} occurs more than once"));
    }
    if *request.method() == Method::CONNECT {
        return bad("method", "the method CONNECT is not supported".to_owned());
    }
    Ok(())
}

/// The router at the public address. Cheap to clone.
#[derive(Debug, Clone)]
pub struct PublicRouter(Arc<RouterState>);

#[derive(Debug)]
struct RouterState {
    identity: Arc<ControlIdentity>,
    gateway: Arc<Gateway>,
    metrics: Arc<ControlMetrics>,
    grpc: tonic_web::GrpcWebService<Router>,
    json: Router,
    draining: CancellationToken,
}

impl PublicRouter {
    /// Creates the router. `grpc` serves the control plane's own services, and `json` serves them
    /// over plain HTTP. Cancelling `draining` makes the readiness check fail.
    pub fn new(
        identity: Arc<ControlIdentity>,
        gateway: Arc<Gateway>,
        metrics: Arc<ControlMetrics>,
        grpc: GrpcServices,
        json: Router,
        draining: CancellationToken,
    ) -> Self {
        // Responses are counted before gRPC-web moves their trailers into the body.
        let counted = grpc.into_router().layer(map_response_with_state(metrics.clone(), count));
        let grpc = tonic_web::GrpcWebLayer::new().layer(counted);
        let json = json.layer(map_response_with_state(metrics.clone(), count));
        Self(Arc::new(RouterState { identity, gateway, metrics, grpc, json, draining }))
    }
}

impl Service<Request<Incoming>> for PublicRouter {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let inner = self.0.clone();
        Box::pin(async move { Ok(inner.answer(request).await) })
    }
}

impl RouterState {
    async fn answer(&self, mut request: Request<Incoming>) -> Response<Body> {
        let protocol = WireProtocol::of(request.headers());
        let rejected = |error: WireError| {
            self.metrics.count_error("control", &error);
            protocol.error_response(error)
        };
        if let Err(error) = check_request(&request) {
            return rejected(error);
        }
        let path = request.uri().path();
        match path {
            HEALTHZ | READYZ => return probe(path, &self.draining),
            HEALTH_CHECK => return self.own(request).await,
            _ => {}
        }
        let caller = match caller(&self.identity, request.headers()) {
            Ok(caller) => caller,
            Err(error) => return rejected(error),
        };
        if let Some(connection_state) = request.extensions().get::<Arc<ConnectionState>>() {
            connection_state.mark_authenticated();
        }
        if protocol == WireProtocol::Grpc && request.version() < Version::HTTP_2 {
            let message = "gRPC needs HTTP/2; use gRPC-web (application/grpc-web) over HTTP/1.1";
            let error = WireError::new(Reason::BadField, message).with("field", CONTENT_TYPE);
            return WireProtocol::Http.error_response(error);
        }
        let json = protocol == WireProtocol::Http && json::serves(path);
        let ours = json || method::find(path).is_some_and(|rpc| !rpc.is_agents());
        // A client may name its workspace on every call. The control plane's own methods ignore it.
        if request.headers().contains_key(metadata::WORKSPACE) && !ours {
            return self.gateway.forward(&caller, request).await;
        }
        if json {
            // The required verb depends on the HTTP method too, so the JSON routes check it.
            request.extensions_mut().insert(caller);
            let Ok(response) = self.json.clone().oneshot(request).await;
            return response;
        }
        if let Err(error) = may_call(&caller, path) {
            return rejected(error);
        }
        if path == METRICS {
            return self.metrics.text().into_response();
        }
        if protocol == WireProtocol::Http {
            let error = WireError::new(Reason::UnknownMethod, format!("nothing is served at {path}"));
            return rejected(error.with("method", path));
        }
        request.extensions_mut().insert(caller);
        self.own(request).await
    }

    async fn own(&self, request: Request<Incoming>) -> Response<Body> {
        let Ok(response) = self.grpc.clone().oneshot(request).await;
        response.map(Body::new)
    }
}

async fn count(State(metrics): State<Arc<ControlMetrics>>, response: Response<Body>) -> Response<Body> {
    let (parts, body) = response.into_parts();
    let mut outcome = metrics.exchange("control", &parts);
    let body = body.map_frame(move |frame| {
        if let Some(trailers) = frame.trailers_ref() {
            outcome.set_trailers(trailers);
        }
        frame
    });
    Response::from_parts(parts, Body::new(body))
}

/// Answers a probe for liveness or readiness. The server is ready until `draining` is cancelled.
pub(crate) fn probe(path: &str, draining: &CancellationToken) -> Response<Body> {
    match path {
        HEALTHZ => "ok\n".into_response(),
        READYZ if draining.is_cancelled() => {
            (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n").into_response()
        }
        READYZ => "ready\n".into_response(),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

/// Returns the principal of the request's bearer token.
fn caller(identity: &ControlIdentity, headers: &HeaderMap) -> Result<Principal, WireError> {
    match bearer(headers) {
        None if !headers.contains_key(AUTHORIZATION) => identity.authenticate(None),
        Some(token) => identity.authenticate(Some(token)),
        None => Err(WireError::new(
            Reason::TokenInvalid,
            "the authorization header holds no token; send \"authorization: Bearer <token>\"",
        )),
    }
}

/// Checks that `caller` may use the control plane's own method or page at `path`. An undeclared
/// path requires `admin`. Fails with `BAD_FIELD` for a method of agents, which needs a workspace's
/// id.
fn may_call(caller: &Principal, path: &str) -> Result<(), WireError> {
    match method::find(path) {
        Some(rpc) if rpc.is_agents() => {
            let message = format!(
                "this method is served by a workspace's agent; name the workspace with metadata \"{}: <id>\"",
                metadata::WORKSPACE
            );
            Err(WireError::new(Reason::BadField, message)
                .with("field", metadata::WORKSPACE)
                .with("allowed", "the id of a workspace"))
        }
        Some(rpc) => caller.may(rpc.verb()),
        None if path == METRICS || is_health_or_reflection(path) => caller.may(Verb::Read),
        None => caller.may(Verb::Admin),
    }
}

/// Returns the layer that answers preflight requests and adds CORS headers. Preflights carry no
/// token, so the layer must wrap the router that authenticates.
pub fn cors(origins: &[String]) -> CorsLayer {
    // The configuration has validated the origins, so each is a valid header value.
    let origins = origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok());
    CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        .allow_headers([
            AUTHORIZATION,
            CONTENT_TYPE,
            IF_MATCH,
            IF_NONE_MATCH,
            RANGE,
            HeaderName::from_static("grpc-timeout"),
            HeaderName::from_static("x-grpc-web"),
            HeaderName::from_static("x-user-agent"),
            HeaderName::from_static(metadata::WORKSPACE),
            HeaderName::from_static(metadata::WAKE),
        ])
        .expose_headers([
            CONTENT_LENGTH,
            CONTENT_RANGE,
            ETAG,
            LOCATION,
            RETRY_AFTER,
            HeaderName::from_static("grpc-status"),
            HeaderName::from_static("grpc-message"),
            HeaderName::from_static("grpc-status-details-bin"),
        ])
        .max_age(MAX_AGE)
}

#[cfg(test)]
mod tests {
    use http::{Request, request::Builder};

    use super::*;

    fn rejected_field(request: Builder) -> Option<String> {
        check_request(&request.body(()).unwrap())
            .err()
            .and_then(|error| error.metadata().get("field").cloned())
    }

    #[test]
    fn ambiguous_request_is_rejected() {
        let request =
            || Request::put("/files/a").header("authorization", "Bearer x").header("te", "trailers");
        assert_eq!(rejected_field(request()), None);
        assert_eq!(
            rejected_field(request().header("authorization", "Bearer y")).as_deref(),
            Some("authorization")
        );
        let twice = request().header("podling-workspace", "a").header("podling-workspace", "b");
        assert_eq!(rejected_field(twice).as_deref(), Some("podling-workspace"));
        assert_eq!(rejected_field(request().method("CONNECT")).as_deref(), Some("method"));
        assert_eq!(rejected_field(request().header("x", "y".repeat(32 * 1024))).as_deref(), Some("headers"));
    }
}
