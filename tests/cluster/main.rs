//! What wants a Kubernetes cluster, met in a real one.

mod backend;
mod buckets;
mod faults;
mod ground;
mod ide;
mod leaders;
mod lives;
mod namespaces;
mod resize;
mod resources;
mod shown;
mod templates;
