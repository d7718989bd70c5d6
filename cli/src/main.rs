//! `podling`: parses the command line, starts a runtime, and reports failures with an exit code.

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};
use podling::{
    advice,
    client::Context,
    command::{self, CommandLine, PodlingCommand},
    failure::{CommandFailure, USAGE},
    output,
    target::GlobalOptions,
};
use podling_control::{config::LogFormat, log};
use tokio::runtime;

/// Hidden subcommand that runs this program as an agent. The embedded control plane starts its
/// workspaces with it.
const AGENT: &str = "agent";
/// Subcommand that runs the control plane.
const UP: &str = "up";
const PROGRAM: &str = "podling";

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|word| word == AGENT) {
        return podling_agent::main_with(std::env::args_os().skip(1));
    }
    // The control plane's log may be JSON. Then its errors are lines of that log.
    let is_up = std::env::args_os().any(|word| word == UP);
    let log_format = if is_up { log::early_format(PROGRAM) } else { LogFormat::Text };
    let parsed = CommandLine::command().try_get_matches().and_then(|matches| {
        Ok((command::named_workspace(&matches), CommandLine::from_arg_matches(&matches)?))
    });
    let (workspace, CommandLine { global, command }) = match parsed {
        Ok(parsed) => parsed,
        Err(error) if log_format == LogFormat::Json && error.use_stderr() => {
            log_format.report(PROGRAM, &error.render().to_string());
            return ExitCode::from(USAGE);
        }
        Err(error) => error.exit(),
    };
    let env = |name: &str| std::env::var_os(name);
    advice::set_repeated_options(global.repeated_options(&env));
    let global = global.with_environment(&env);
    let json = global.json;
    let is_up = matches!(command, PodlingCommand::Up(_));
    let log_format = if is_up { log_format } else { LogFormat::Text };
    let code = run(global, command).unwrap_or_else(|failure| {
        let failure = failure.about(workspace.as_deref());
        match log_format {
            LogFormat::Text => output::report(&failure, json),
            LogFormat::Json => log_format.report(PROGRAM, &failure.describe()),
        }
        failure.exit_code()
    });
    ExitCode::from(code)
}

fn run(global: GlobalOptions, command: PodlingCommand) -> Result<u8, CommandFailure> {
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
