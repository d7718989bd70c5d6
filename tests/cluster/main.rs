//! Tests that need a Kubernetes cluster. `cargo xtask cluster test` and `faults` run them.

mod backend;
mod backup;
mod custom_resources;
mod faults;
mod ide;
mod kubectl_golden;
mod leader_election;
mod lifecycle;
mod manifests;
mod namespace_deletion;
mod object_storage;
mod prerequisites;
mod resize;
mod status_display;
mod templates;
