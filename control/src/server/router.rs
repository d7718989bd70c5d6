//! The routers of the two listeners. The public router authenticates the caller before any handler
//! runs; only health checks need no token.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{Router, body::Body, extract::State, middleware::map_response_with_state};
use http::{HeaderValue, Request, Response, StatusCode, Version, header::CONTENT_TYPE};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use podling_proto::{
    error::{Reason, WireError},
    metadata, method,
};
use tokio_util::sync::CancellationToken;
use tower::{Layer, Service, ServiceExt};

use super::{auth, unauthenticated::ConnectionState, validate};
use crate::{
    api::json, error_response::WireProtocol, gateway::Gateway, identity::ControlIdentity,
    metrics::ControlMetrics,
};

pub(super) const METRICS: &str = "/metrics";
/// Liveness: always 200 while the process runs.
const HEALTHZ: &str = "/healthz";
/// Readiness: 200, or 503 once the server is draining.
const READYZ: &str = "/readyz";
/// The only RPC without a token, for load balancers.
const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";

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

type ResponseFuture<T> = Pin<Box<dyn Future<Output = Result<T, Infallible>> + Send>>;

impl PublicRouter {
    /// Creates the router. `grpc` serves the control plane's own services, and `json` serves them
    /// over plain HTTP. Cancelling `draining` makes the readiness check fail.
    pub fn new(
        identity: Arc<ControlIdentity>,
        gateway: Arc<Gateway>,
        metrics: Arc<ControlMetrics>,
        grpc: Router,
        json: Router,
        draining: CancellationToken,
    ) -> Self {
        // Responses are counted before gRPC-web moves their trailers into the body.
        let counted = grpc.layer(map_response_with_state(metrics.clone(), count));
        let grpc = tonic_web::GrpcWebLayer::new().layer(counted.with_state(()));
        let json = json.layer(map_response_with_state(metrics.clone(), count));
        Self(Arc::new(RouterState { identity, gateway, metrics, grpc, json, draining }))
    }
}

impl Service<Request<Incoming>> for PublicRouter {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = ResponseFuture<Self::Response>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let inner = self.0.clone();
        Box::pin(async move { Ok(inner.answer(request).await) })
    }
}

impl RouterState {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let protocol = WireProtocol::of(request.headers());
        let (parts, body) = request.into_parts();
        if let Err(error) = validate::check_request(&parts) {
            self.metrics.count_error("control", &error);
            return protocol.error_response(error);
        }
        let mut request = Request::from_parts(parts, body);
        let path = request.uri().path();
        match path {
            HEALTHZ => return text(StatusCode::OK, "ok\n".to_owned()),
            READYZ if self.draining.is_cancelled() => {
                return text(StatusCode::SERVICE_UNAVAILABLE, "shutting down\n".to_owned());
            }
            READYZ => return text(StatusCode::OK, "ready\n".to_owned()),
            HEALTH_CHECK => return self.own(request).await,
            _ => {}
        }
        let rejected = |error: WireError| {
            self.metrics.count_error("control", &error);
            protocol.error_response(error)
        };
        let caller = match auth::caller(&self.identity, request.headers()) {
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
        if let Err(error) = auth::may_call(&caller, path) {
            return rejected(error);
        }
        if path == METRICS {
            return text(StatusCode::OK, self.metrics.text());
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

fn text(status: StatusCode, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}

/// The router at the agents' address. Its single service checks the agents' credentials itself.
#[derive(Debug, Clone)]
pub struct AgentsRouter(Router);

impl AgentsRouter {
    /// Creates the router. `grpc` serves the service that agents connect to.
    pub fn new(grpc: Router) -> Self {
        Self(grpc.with_state(()))
    }
}

impl Service<Request<Incoming>> for AgentsRouter {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = ResponseFuture<Self::Response>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        Box::pin(self.0.clone().oneshot(request))
    }
}
