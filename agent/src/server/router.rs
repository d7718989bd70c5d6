//! Routes of the server: gRPC services, health, reflection, metrics and plain HTTP. All of them
//! pass through authorization.

use std::sync::Arc;

use axum::{
    Router,
    extract::Request,
    middleware::{Next, from_fn, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::get,
};
use http::{StatusCode, Version};
use podling_proto::{AGENT_DESCRIPTOR_SET, error::WireError, error_response::WireProtocol, v1::Reason};
use tonic::service::Routes;
use tonic_health::{
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};
use tonic_web::GrpcWebLayer;

use super::{
    auth,
    calls::{self, StreamShutdown},
};
use crate::{activity::calls::ClientCalls, claim::ClaimReceiver};

/// The descriptor set for reflection is unreadable, which indicates a defective build.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the descriptor set for reflection")]
pub struct DescriptorError(#[from] tonic_reflection::server::Error);

/// Longest request of a health check; longer ones are rejected. Health checks need no token, so
/// they must not allocate tonic's default of 4 MiB each. They contain only a service name.
const MAX_HEALTH_REQUEST_BYTES: usize = 1024;

/// Dependencies of the routes.
#[derive(Clone)]
pub struct RouterParts {
    /// Source of the claim, whose keys verify tokens.
    pub claims: ClaimReceiver,
    /// Table of the calls under way.
    pub calls: ClientCalls,
    pub health: HealthReporter,
    /// Returns whether the agent is claimed and not shutting down.
    pub ready: Arc<dyn Fn() -> bool + Send + Sync>,
    /// Ends open response streams when the agent shuts down.
    pub shutdown: StreamShutdown,
    /// Formats the text of `/metrics`.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
}

/// Builds the router. `names` lists the services in `grpc` for reflection, and `http` has the
/// routes that are not gRPC.
pub fn router(
    parts: RouterParts,
    grpc: Routes,
    names: &[&str],
    http: Router,
) -> Result<Router, DescriptorError> {
    let reflection = || {
        let all = names.iter().chain(&["grpc.health.v1.Health"]);
        let builder = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(AGENT_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
        all.fold(builder, |builder, name| builder.with_service_name(*name))
    };
    let health = HealthServer::new(HealthService::from_health_reporter(parts.health));
    let grpc = grpc
        .add_service(health.max_decoding_message_size(MAX_HEALTH_REQUEST_BYTES))
        .add_service(reflection().with_service_name("grpc.reflection.v1.ServerReflection").build_v1()?)
        .add_service(
            reflection().with_service_name("grpc.reflection.v1alpha.ServerReflection").build_v1alpha()?,
        )
        .into_axum_router()
        .reset_fallback()
        .layer(from_fn_with_state(parts.shutdown, calls::end_streams))
        // Converts gRPC-web to gRPC; gRPC over HTTP/2 passes unchanged.
        .layer(GrpcWebLayer::new())
        .layer(from_fn(only_grpc));
    let (ready, metrics) = (parts.ready, parts.metrics);
    let plain = Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(move || readiness(ready())))
        .route("/metrics", get(move || text(metrics())));
    Ok(grpc
        .merge(plain)
        .merge(http)
        .fallback(unknown)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state(parts.calls, calls::track))
        .layer(from_fn_with_state(parts.claims, auth::check)))
}

async fn readiness(ready: bool) -> (StatusCode, &'static str) {
    if ready { (StatusCode::OK, "ready") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready") }
}

async fn text(metrics: String) -> impl IntoResponse {
    ([("content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8")], metrics)
}

async fn unknown(request: Request) -> Response {
    let path = request.uri().path();
    let error = WireError::new(
        Reason::UnknownMethod,
        format!("unknown path {path}; use gRPC reflection to list the methods"),
    )
    .with("method", path);
    WireProtocol::of(request.headers()).error_response(error)
}

async fn method_not_allowed(request: Request) -> Response {
    let operation = format!("{} {}", request.method(), request.uri().path());
    let error = WireError::new(Reason::UnknownMethod, format!("{operation} is not supported"))
        .with("method", operation)
        .http(StatusCode::METHOD_NOT_ALLOWED);
    WireProtocol::of(request.headers()).error_response(error)
}

/// Rejects calls to gRPC services in any other protocol, with an error that names the accepted
/// protocols. Middleware.
async fn only_grpc(request: Request, next: Next) -> Response {
    let protocol = WireProtocol::of(request.headers());
    match protocol {
        WireProtocol::Grpc if request.version() != Version::HTTP_2 => {}
        WireProtocol::Http => {}
        WireProtocol::Grpc | WireProtocol::GrpcWeb | WireProtocol::GrpcWebText => {
            return next.run(request).await;
        }
    }
    let error = WireError::new(Reason::BadField, "this path accepts only gRPC over HTTP/2 and gRPC-web")
        .with("field", "content-type")
        .with("allowed", "application/grpc over HTTP/2, application/grpc-web");
    protocol.error_response(error)
}

impl std::fmt::Debug for RouterParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RouterParts").finish_non_exhaustive()
    }
}
