//! gRPC and HTTP services. They convert proto to domain types (fallible) and back (total), and do
//! nothing else.

pub mod activity;
mod admission;
pub mod archive_http;
pub mod archives;
pub mod files;
pub mod files_http;
pub(crate) mod problem;
pub mod processes;
mod spawn_error;
pub mod terminals;
