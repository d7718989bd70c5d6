//! The agent as a program of its own; all it does is in the library, which `podling agent` runs as well.

use std::process::ExitCode;

fn main() -> ExitCode {
    podling_agent::program(std::env::args_os())
}
