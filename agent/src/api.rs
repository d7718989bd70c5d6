//! The edges: proto to domain (fallible), domain to proto (total), and nothing else.

pub mod files;
pub mod files_http;
mod problem;
mod spawn_error;
