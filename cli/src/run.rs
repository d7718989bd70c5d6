//! A command workspace_client a workspace, as if it ran here: its output, its input, its signals, its exit code.

pub mod command_follower;
pub mod input;
pub mod output_positions;
