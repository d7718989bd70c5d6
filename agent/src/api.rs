//! gRPC and HTTP services. They only convert between messages and domain types. Converting a
//! request can fail, but converting a response cannot.

pub mod activity;
pub mod archives;
pub(crate) mod errors;
pub mod files;
pub mod files_http;
pub mod processes;
pub mod terminals;
