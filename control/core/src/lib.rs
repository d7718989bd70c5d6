//! The decisions of the control plane, as pure functions of values.
//!
//! The code does no IO and reads no clock: `now` is always an argument. A test of the repository
//! refuses tokio, kube, tonic, axum and other IO crates in the manifest.

pub mod action;
pub mod archive;
pub mod decide;
pub mod id;
pub mod observed;
pub mod policy;
pub mod quota;
pub mod reason;
pub mod spec_change;
pub mod status;
pub mod time;
pub mod workspace;
