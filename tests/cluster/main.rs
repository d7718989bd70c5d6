//! What wants a Kubernetes cluster, met in a real one.

mod backend;
mod ground;
mod leaders;
mod lives;
mod resources;
