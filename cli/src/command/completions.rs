//! `podling completions`: what a shell needs to complete the command line.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::{args::CommandLine, failure::CommandFailure, output};

/// Print completions for a shell
///
/// For bash: podling completions bash > ~/.local/share/bash-completion/completions/podling
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// Which shell.
    shell: Shell,
}

impl CompletionsArgs {
    /// Prints them.
    pub fn run(self) -> Result<u8, CommandFailure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut CommandLine::command(), "podling", &mut script);
        output::print(&String::from_utf8_lossy(&script))?;
        Ok(0)
    }
}
