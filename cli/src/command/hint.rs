//! Commands and flags that users know from other tools. Each fails and names the command of this
//! tool.

use clap::Args;

use crate::failure::CommandFailure;

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
            false => CommandFailure::Usage(format!(
                "there is no such command; to run a command, use: podling run {name} -- {}",
                command.join(" ")
            )),
        })
    }
}

/// Returns the failure for a request to run a command in a terminal.
pub fn for_terminal(name: &str, command: &[String]) -> CommandFailure {
    let attach = match command {
        [] => format!("podling attach {name}"),
        command => format!("podling attach {name} --new -- {}", command.join(" ")),
    };
    CommandFailure::Usage(format!("`run` has no terminal; to use a program in a terminal: {attach}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_of_other_tools_names_ours() {
        let hint = |arguments: &[&str]| {
            let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
            HintArgs { arguments }.run().expect_err("a hint").to_string()
        };
        assert!(hint(&["-it", "demo", "bash"]).ends_with(": podling attach demo --new -- bash"));
        assert!(hint(&["-it", "demo", "--", "bash", "-l"]).ends_with("podling attach demo --new -- bash -l"));
        assert!(hint(&["demo"]).ends_with(": podling attach demo"));
        assert!(hint(&["demo", "--", "ls", "-t"]).ends_with(": podling run demo -- ls -t"));
        assert!(hint(&[]).ends_with(": podling attach NAME"));
    }
}
