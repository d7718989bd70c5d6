//! `podling`: parses the command line, starts a runtime, and reports failures with an exit code.

use std::process::ExitCode;

use clap::Parser as _;
use podling::{
    args::{CommandLine, PodlingCommand},
    context::Context,
    failure::CommandFailure,
};
use tokio::runtime;

/// Hidden subcommand that runs this program as an agent. The embedded control plane starts its
/// workspaces with it.
const AGENT: &str = "agent";

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|word| word == AGENT) {
        return podling_agent::main_with(std::env::args_os().skip(1));
    }
    let command_line = CommandLine::parse();
    let json = command_line.global.json;
    let code = run(command_line).unwrap_or_else(|failure| {
        failure.report(json);
        failure.exit_code()
    });
    ExitCode::from(code)
}

fn run(command_line: CommandLine) -> Result<u8, CommandFailure> {
    let CommandLine { global, command } = command_line;
    let runtime = runtime(&command).enable_all().build().map_err(CommandFailure::io("cannot start"))?;
    let outcome = runtime.block_on(command.run(&Context { global }));
    // A file read that hangs must not delay the exit.
    runtime.shutdown_background();
    outcome
}

/// Returns a multi-threaded runtime for the control plane and a single-threaded one for clients.
fn runtime(command: &PodlingCommand) -> runtime::Builder {
    match command {
        PodlingCommand::Up(_) => runtime::Builder::new_multi_thread(),
        _ => runtime::Builder::new_current_thread(),
    }
}
