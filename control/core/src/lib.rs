//! The decisions of Podling, as pure functions of values.
//!
//! Nothing here does IO, reads a clock or knows a transport: no tokio, kube, tonic or axum in the manifest (a test of the
//! workspace holds that). `now` is always an argument.

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
