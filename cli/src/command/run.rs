//! `podling run`: runs a command in a workspace, connected to the local standard input and output.

use std::{
    cell::Cell,
    io::{IsTerminal as _, stdin},
    rc::Rc,
    time::Duration,
};

use clap::Args;
use podling_proto::{
    agent::v1::{Command, StartProcessRequest},
    token,
};
use tokio::sync::watch;

use crate::{
    context::Context,
    duration,
    failure::{self, CommandFailure},
    run::{
        command_follower::CommandFollower,
        input::{self, TerminationSignals},
    },
    wake_spinner::WakeSpinner,
};

const REQUEST_ID_BYTES: usize = 12;

const EXAMPLES: &str = "\
Examples:
  podling run demo -- uname -a
  tar c src | podling run demo -- tar x";

/// Run a command in a workspace
///
/// The command's standard input, output and error, its signals and its exit code are connected to
/// yours. A sleeping workspace is woken.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct RunArgs {
    /// Name or id of the workspace
    name: String,
    /// Set an environment variable of the command; KEY alone copies the value from your shell
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    env: Vec<String>,
    /// Working directory, relative to the root of the workspace [default: the root]
    #[arg(short = 'w', long, value_name = "DIR", default_value = "", hide_default_value = true)]
    cwd: String,
    /// End the command after this time, for example 30s or 5m; the exit code is then 124 [default:
    /// no limit]
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    timeout: Option<Duration>,
    /// Forward standard input even if it is a terminal
    #[arg(short, long)]
    interactive: bool,
    /// Command and its arguments; no shell interprets them
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    command: Vec<String>,
}

impl RunArgs {
    pub async fn run(self, context: &Context) -> Result<u8, CommandFailure> {
        let code = |failure: CommandFailure| failure.with_code(failure::RUN_FAILED);
        let signals = TerminationSignals::listen()
            .map_err(CommandFailure::io("cannot listen for signals"))
            .map_err(code)?;
        let client = context.client().await.map_err(code)?;
        let workspace = client.find(&self.name).await.map_err(code)?;
        let workspace_client = client.workspace_client_for(&workspace);
        let wake_spinner = WakeSpinner::new(client, workspace.id);
        let with_stdin = self.interactive || !stdin().is_terminal();
        let request = StartProcessRequest {
            command: Some(Command {
                argv: self.command,
                env: environment(&self.env),
                cwd: self.cwd,
                timeout: self.timeout.map(duration::to_wire),
            }),
            stdin: with_stdin,
            request_id: token::random(REQUEST_ID_BYTES),
        };
        let (started, running) = watch::channel(None);
        let output_closed = Rc::new(Cell::new(false));
        let follower = CommandFollower::new(
            workspace_client.clone(),
            wake_spinner,
            request,
            started,
            Rc::clone(&output_closed),
        )
        .map_err(CommandFailure::io("cannot use standard output"))?;
        tokio::select! {
            code = follower.follow() => code.map(|code| match output_closed.get() {
                true => crate::signal::exit_code("PIPE"),
                false => code,
            }),
            code = input::forward_signals(workspace_client.clone(), running.clone(), signals) => Ok(code),
            code = input::end_on_closed_output(
                workspace_client.clone(),
                running.clone(),
                output_closed.clone(),
            ) => Ok(code),
            refused = input::forward_stdin(workspace_client.clone(), running.clone()), if with_stdin => {
                Err(code(refused))
            }
        }
    }
}

/// Parses settings of the form `KEY=VALUE` or `KEY`. `KEY` alone gets its local value; if there is
/// none, the setting is skipped.
pub fn environment(settings: &[String]) -> std::collections::HashMap<String, String> {
    let pair = |setting: &String| match setting.split_once('=') {
        Some((key, value)) => Some((key.to_owned(), value.to_owned())),
        None => std::env::var(setting).ok().map(|value| (setting.clone(), value)),
    };
    settings.iter().filter_map(pair).collect()
}
