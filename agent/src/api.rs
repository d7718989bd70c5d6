//! gRPC and HTTP services. They only convert between messages and domain types. Converting a
//! request can fail, but converting a response cannot.

pub mod activity;
mod admission;
pub mod archives;
pub mod export_http;
pub mod files;
pub mod files_http;
pub(crate) mod problem;
pub mod processes;
mod spawn_error;
pub mod terminals;
