//! A command inside a workspace, as if it ran here: its output, its input, its signals, its exit code.

pub mod feed;
pub mod follow;
pub mod tally;
