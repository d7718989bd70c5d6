//! The decisions of the control plane, as pure functions of values.
//!
//! Code here does no IO, reads no clock and knows no transport: a workspace test checks that the
//! manifest has no tokio, kube, tonic or axum. `now` is always an argument.

pub mod archive;
pub mod decide;
pub mod id;
pub mod mutant;
pub mod observed;
pub mod policy;
pub mod quota;
pub mod reason;
pub mod status;
pub mod time;
pub mod workspace;
