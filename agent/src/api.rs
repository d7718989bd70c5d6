//! The edges: proto to domain (fallible), domain to proto (total), and nothing else.

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
