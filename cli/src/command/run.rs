//! `podling run`: runs a command in a workspace, connected to the local standard input and output.
//!
//! Commands and flags that users know from other tools fail here, and name the command to use.

pub mod follower;
pub mod input;

use std::{
    io::{IsTerminal as _, stdin},
    time::Duration,
};

use clap::Args;
use podling_proto::agent::v1::{Command, StartProcessRequest};
use tokio::sync::watch;

use self::{follower::CommandFollower, input::LocalStdin};
use crate::{
    advice,
    client::{Context, request_id},
    duration,
    failure::{self, CommandFailure},
    notice,
    signal::TerminationSignals,
    spinner::WakeSpinner,
};

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
        if self.tty {
            return Err(for_terminal(&self.name, &self.command));
        }
        self.follow(context).await.map_err(|failure| failure.with_default_code(failure::RUN_FAILED))
    }

    async fn follow(self, context: &Context) -> Result<u8, CommandFailure> {
        let signals = TerminationSignals::listen()?;
        let client = context.client().await?;
        let workspace = client.find(&self.name).await?;
        let workspace_client = client.workspace_client_for(&workspace);
        let wake_spinner = WakeSpinner::new(client, workspace.id);
        let mut local_stdin = match self.forwards_stdin() {
            true => Some(LocalStdin::open().map_err(CommandFailure::io("cannot read standard input"))?),
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
            request_id: request_id(),
        };
        let (started, running) = watch::channel(None);
        let follower = CommandFollower::new(workspace_client.clone(), wake_spinner, request, started)
            .map_err(CommandFailure::io("cannot use standard output"))?;
        let feed = async {
            match &mut local_stdin {
                Some(stdin) => input::forward_stdin(workspace_client.clone(), running.clone(), stdin).await,
                None => std::future::pending().await,
            }
        };
        let exit = tokio::select! {
            ended = follower.follow() => ended?,
            code = input::forward_signals(workspace_client.clone(), running.clone(), signals) => {
                return Ok(code);
            }
            refused = feed => return Err(refused),
        };
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
        Ok(follower::exit_code(&exit))
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

/// Arguments of a command that this tool does not have.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub struct HintArgs {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    arguments: Vec<String>,
}

impl HintArgs {
    /// Returns the failure with the command to use instead of `exec`, `ssh` or `shell`.
    pub fn run(self) -> Result<u8, CommandFailure> {
        let is_flag = |argument: &&String| argument.starts_with('-') && argument.as_str() != "--";
        let flags: Vec<_> = self.arguments.iter().take_while(is_flag).collect();
        let has_terminal = flags.iter().any(|flag| flag.contains('t'));
        let mut rest = self.arguments.iter().skip(flags.len()).filter(|argument| *argument != "--");
        let name = rest.next().map_or("NAME", String::as_str);
        let command: Vec<_> = rest.cloned().collect();
        Err(match command.is_empty() || has_terminal {
            true => for_terminal(name, &command),
            false => {
                let run = advice::command(format_args!("run {name} -- {}", command.join(" ")));
                CommandFailure::Usage(format!("there is no such command; to run a command, use: {run}"))
            }
        })
    }
}

/// Returns the failure for a request to run a command in a terminal.
fn for_terminal(name: &str, command: &[String]) -> CommandFailure {
    let attach = match command {
        [] => advice::command(format_args!("attach {name}")),
        command => advice::command(format_args!("attach {name} --new -- {}", command.join(" "))),
    };
    CommandFailure::Usage(format!("`podling run` has no terminal; to use a program in a terminal: {attach}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advice::tests::repeating;

    #[test]
    fn command_of_other_tools_names_ours() {
        let hint = |arguments: &[&str]| {
            let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
            HintArgs { arguments }.run().expect_err("a hint").to_string()
        };
        assert!(hint(&["-it", "demo", "bash"]).ends_with(": podling attach demo --new -- bash"));
        assert!(hint(&["-it", "demo", "--", "bash", "-l"]).ends_with("podling attach demo --new -- bash -l"));
        let interactive = repeating(" -x", || hint(&["-t", "demo"]));
        assert_eq!(
            interactive,
            "`podling run` has no terminal; to use a program in a terminal: podling -x attach demo"
        );
        assert!(hint(&["demo"]).ends_with(": podling attach demo"));
        assert!(hint(&["demo", "--", "ls", "-t"]).ends_with(": podling run demo -- ls -t"));
        assert!(hint(&[]).ends_with(": podling attach NAME"));
    }
}
