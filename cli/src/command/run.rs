//! `podling run`: runs a command in a workspace, connected to the local standard input and output.

use std::{
    io::{IsTerminal as _, stdin},
    time::Duration,
};

use clap::Args;
use podling_proto::{
    agent::v1::{Command, ProcessExit, StartProcessRequest},
    token,
};
use tokio::sync::watch;

use super::hint;
use crate::{
    client::Context,
    duration,
    failure::{self, CommandFailure},
    notice,
    run::{
        command_follower::{self, CommandFollower},
        input,
        local_output::OutputHealth,
        local_stdin::LocalStdin,
    },
    signal::TerminationSignals,
    spinner::WakeSpinner,
};

const REQUEST_ID_BYTES: usize = 12;

const EXAMPLES: &str = "\
Examples:
  podling run demo -- uname -a
  tar c src | podling run demo -- tar x
  while read -r line; do podling run -n demo -- echo \"$line\"; done < lines.txt";

/// Run a command in a workspace
///
/// The command's standard input, output and error, its signals and its exit code are connected to
/// yours. A sleeping workspace is woken.
///
/// Input that the command does not read stays available to the next program, if standard input is a
/// file or a pipe. A terminal is forwarded only with -i. For an interactive program, use `podling
/// attach NAME --new -- CMD`.
///
/// Output is shown until the command has ended and its output is silent for 250 ms. If a background
/// process of the command still holds the output then, a message says so.
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
    /// Do not forward standard input; the command reads from /dev/null
    #[arg(short, long, conflicts_with = "interactive")]
    no_stdin: bool,
    /// Known from other tools; `run` has no terminal
    #[arg(short, long, hide = true)]
    tty: bool,
    /// Command and its arguments; no shell interprets them
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    command: Vec<String>,
}

impl RunArgs {
    pub async fn run(self, context: &Context) -> Result<u8, CommandFailure> {
        let code = |failure: CommandFailure| failure.with_code(failure::RUN_FAILED);
        if self.tty {
            return Err(hint::for_terminal(&self.name, &self.command));
        }
        let signals = TerminationSignals::listen().map_err(code)?;
        let client = context.client().await.map_err(code)?;
        let workspace = client.find(&self.name).await.map_err(code)?;
        let workspace_client = client.workspace_client_for(&workspace);
        let wake_spinner = WakeSpinner::new(client, workspace.id);
        let mut local_stdin = match self.forwards_stdin() {
            true => Some(
                LocalStdin::open().map_err(CommandFailure::io("cannot read standard input")).map_err(code)?,
            ),
            false => None,
        };
        let request = StartProcessRequest {
            command: Some(Command {
                argv: self.command,
                env: environment(&self.env),
                cwd: self.cwd,
                timeout: self.timeout.map(duration::to_wire),
            }),
            stdin: local_stdin.is_some(),
            request_id: token::random(REQUEST_ID_BYTES),
        };
        let (started, running) = watch::channel(None);
        let output_health = OutputHealth::default();
        let follower = CommandFollower::new(
            workspace_client.clone(),
            wake_spinner,
            request,
            started,
            output_health.clone(),
        )
        .map_err(CommandFailure::io("cannot use standard output"))
        .map_err(code)?;
        let feed = async {
            match &mut local_stdin {
                Some(stdin) => input::forward_stdin(workspace_client.clone(), running.clone(), stdin).await,
                None => std::future::pending().await,
            }
        };
        let ended = tokio::select! {
            ended = follower.follow() => ended,
            code = input::forward_signals(workspace_client.clone(), running.clone(), signals) => {
                return Ok(code);
            }
            () = input::end_on_failed_output(
                workspace_client.clone(),
                running.clone(),
                output_health.clone(),
            ) => Ok(ProcessExit::default()),
            refused = feed => Err(code(refused)),
        };
        if let Some(failure) = output_health.into_failure() {
            return Err(match failure {
                CommandFailure::OutputClosed => failure,
                failure => code(failure),
            });
        }
        let exit = ended?;
        if let (Some(stdin), Some(read)) = (&mut local_stdin, exit.stdin_read)
            && let Err(error) = stdin.leave_unread(read)
        {
            notice!("podling: cannot leave unread input to the next program: {error}");
        }
        if exit.held_by_background {
            notice!(
                "podling: the command has ended, but a background process of it still runs and holds its \
                 output; later output is not shown"
            );
        }
        Ok(command_follower::exit_code(&exit))
    }

    fn forwards_stdin(&self) -> bool {
        !self.no_stdin && (self.interactive || !stdin().is_terminal())
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
