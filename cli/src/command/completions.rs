//! `podling completions`: prints shell completions.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::{args::CommandLine, failure::CommandFailure, output};

const EXAMPLE: &str = "\
Example, for bash:
  podling completions bash > ~/.local/share/bash-completion/completions/podling";

/// Print a shell completion script
#[derive(Debug, Args)]
#[command(after_help = EXAMPLE)]
pub struct CompletionsArgs {
    /// Shell to complete for
    shell: Shell,
}

impl CompletionsArgs {
    pub fn run(self) -> Result<u8, CommandFailure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut CommandLine::command(), "podling", &mut script);
        output::print(&String::from_utf8_lossy(&script))?;
        Ok(0)
    }
}
