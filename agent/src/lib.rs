//! The agent: one per workspace, in its container (or, with the local backend, beside it).
//!
//! The modules in suggested reading order. `run` is the composition root; `api` holds the edges that translate proto; everything
//! else is domain code that knows neither tonic nor axum.

pub mod api;
pub mod byte_log;
pub mod child;
pub mod claim;
pub mod files;
pub mod intent;
pub mod spawn;
