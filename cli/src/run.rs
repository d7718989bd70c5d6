//! Connects a remote command to the local input, output, signals and exit code.

pub mod command_follower;
pub mod input;
pub mod local_output;
pub mod local_stdin;
pub mod output_positions;
