//! The gRPC services at the public address.

use axum::Router;
use podling_proto::DESCRIPTOR_SET;
use tonic::service::Routes;
use tonic_health::server::HealthReporter;
use tonic_reflection::server::Builder as Reflection;

use super::ControlPlaneError;

/// Largest health request, in bytes; longer ones are rejected. Health needs no token, and an
/// unauthenticated client must not make the server buffer more than the name of a service.
const MAX_HEALTH_BYTES: usize = 1024;

/// Adds health and reflection to the control plane's services.
pub(super) fn with_description(own: Routes, health: &HealthReporter) -> Result<Router, ControlPlaneError> {
    let health = tonic_health::pb::health_server::HealthServer::new(
        tonic_health::server::HealthService::from_health_reporter(health.clone()),
    )
    .max_decoding_message_size(MAX_HEALTH_BYTES);
    let description = || {
        Reflection::configure()
            .register_encoded_file_descriptor_set(DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    Ok(own
        .add_service(health)
        .add_service(description().build_v1().map_err(ControlPlaneError::Reflection)?)
        // Older clients, such as grpcurl, try this version first.
        .add_service(description().build_v1alpha().map_err(ControlPlaneError::Reflection)?)
        .into_axum_router())
}
