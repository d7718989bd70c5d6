//! Connects a remote command to the local input, output, signals and exit code.

pub mod command_follower;
pub mod input;
pub mod output_positions;
