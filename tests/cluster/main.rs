//! What wants a Kubernetes cluster, met in a real one.

mod ground;
mod resources;
