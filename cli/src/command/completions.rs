//! `podling completions`: prints shell completions.

use std::time::Duration;

use clap::Args;
use clap_complete::Shell;
use podling_proto::control::v1::ListWorkspacesRequest;
use tokio::time::timeout;

use crate::{
    client::Context,
    failure::{self, CommandFailure},
    output,
};

const EXAMPLE: &str = "\
Example, for bash:
  podling completions bash > ~/.local/share/bash-completion/completions/podling";

/// Additions to the generated scripts, which complete the names of workspaces.
const BASH_NAMES: &str = include_str!("completions.bash");
const FISH_NAMES: &str = include_str!("completions.fish");
const ZSH_NAMES: &str = "
_podling_names() {
    local -a names
    names=(${(f)\"$(podling completions --names 2>/dev/null)\"})
    compadd -a names
}
";
/// Words in the help of each argument that names a workspace. A script for zsh contains the help.
const NAMES_IN_HELP: [&str; 4] = [
    "ame or id of the workspace",
    "ames or ids of the workspaces",
    "ame or id of a workspace",
    "this workspace (name or id)",
];
/// Time limit for listing names, because the user waits for it at a prompt.
const NAMES_TIMEOUT: Duration = Duration::from_secs(2);

/// Print a shell completion script
///
/// The script also completes the names of workspaces, which it asks the control plane for.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLE)]
pub struct CompletionsArgs {
    /// Shell to complete for
    #[arg(required_unless_present = "names")]
    shell: Option<Shell>,
    /// Print the names of workspaces, one a line
    #[arg(long, hide = true, conflicts_with = "shell")]
    names: bool,
}

impl CompletionsArgs {
    /// Prints the script for this definition of the command line.
    pub async fn run(self, context: &Context, definition: clap::Command) -> Result<u8, CommandFailure> {
        match self.shell {
            Some(shell) => output::print(&script(shell, definition))?,
            None => {
                // A message would appear in the line that the user types.
                if let Ok(Ok(names)) = timeout(NAMES_TIMEOUT, names(context)).await {
                    output::print(&names)?;
                }
            }
        }
        Ok(failure::OK)
    }
}

async fn names(context: &Context) -> Result<String, CommandFailure> {
    let request = ListWorkspacesRequest::default();
    let workspaces = context.client().await?.workspaces().list(request).await?.into_inner().workspaces;
    Ok(workspaces.iter().map(|workspace| format!("{}\n", workspace.name)).collect())
}

fn script(shell: Shell, mut definition: clap::Command) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut definition, "podling", &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    match shell {
        Shell::Bash => script + BASH_NAMES,
        Shell::Fish => script + FISH_NAMES,
        Shell::Zsh => zsh_with_names(&script),
        _ => script,
    }
}

/// Completes each argument that names a workspace by the function of [`ZSH_NAMES`].
fn zsh_with_names(script: &str) -> String {
    let complete_names = |line: &str| match NAMES_IN_HELP.iter().any(|names| line.contains(names)) {
        true => line.replace(":_default'", ":_podling_names'"),
        false => line.to_owned(),
    };
    let (head, rest) = script.split_once('\n').unwrap_or((script, ""));
    let rest: Vec<_> = rest.lines().map(complete_names).collect();
    format!("{head}\n{ZSH_NAMES}{}\n", rest.join("\n"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::command::CommandLine;

    #[test]
    fn each_command_completes_names_of_workspaces() {
        let takes_workspaces = |command: &clap::Command| {
            let help =
                |argument: &clap::Arg| argument.get_help().map(ToString::to_string).unwrap_or_default();
            command.get_positionals().any(|argument| help(argument).contains("or id"))
        };
        let commands = CommandLine::command();
        let named: Vec<_> = commands.get_subcommands().filter(|command| takes_workspaces(command)).collect();
        assert!(named.len() >= 8, "{}", named.len());
        let zsh = script(Shell::Zsh, CommandLine::command());
        assert!(zsh.starts_with("#compdef podling\n"));
        assert!(zsh.matches(":_podling_names'").count() >= named.len(), "{zsh}");
        for command in named {
            let name = command.get_name();
            let is_listed =
                |text: &str| text.split(|c: char| !c.is_alphanumeric() && c != '-').any(|w| w == name);
            assert!(is_listed(BASH_NAMES), "bash: {name}");
            assert!(is_listed(FISH_NAMES), "fish: {name}");
        }
    }
}
