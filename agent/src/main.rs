//! The stand-alone agent binary. `podling agent` runs the same library.

use std::process::ExitCode;

fn main() -> ExitCode {
    podling_agent::program(std::env::args_os())
}
