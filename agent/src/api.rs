//! The edges: proto to domain (fallible), domain to proto (total), and nothing else.

mod spawn_error;
