//! The gRPC services at the public address.

use std::collections::BTreeSet;

use axum::Router;
use podling_proto::{DESCRIPTOR_SET, method::METHODS};
use tonic::service::Routes;
use tonic_health::{ServingStatus, server::HealthReporter};
use tonic_reflection::server::Builder as Reflection;

use super::ControlPlaneError;

/// Name by which a health request asks for the server as a whole.
const OVERALL_HEALTH: &str = "";
/// Largest health request, in bytes; longer ones are rejected. Health needs no token, and an
/// unauthenticated client must not make the server buffer more than the name of a service.
const MAX_HEALTH_BYTES: usize = 1024;

/// Sets the health of the control plane, of its own services, and of the agents' services, which the
/// gateway forwards.
pub(super) async fn set_health(health: &HealthReporter, status: ServingStatus) {
    let services: BTreeSet<_> = METHODS.iter().filter_map(|method| method.service()).collect();
    for service in services.into_iter().chain([OVERALL_HEALTH]) {
        health.set_service_status(service, status).await;
    }
}

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
