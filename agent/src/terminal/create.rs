//! Validation of a create request, and the start of its program on a new PTY.

use super::{
    TerminalError, WindowSize,
    builder::TerminalSpec,
    ids::TerminalId,
    journal::RestartSpec,
    pty::{Pty, PtyPair},
    shell::{default_argv, is_interactive},
};
use crate::{
    child::{Child, Children},
    spawn::{Launcher, Program, spawn_failed, truncate_argv},
};

/// Longest display name, in characters.
const MAX_NAME_CHARS: usize = 100;
/// Longest request id, in bytes.
const MAX_REQUEST_ID_BYTES: usize = 64;
/// Value of `TERM` unless the request or the claim sets one.
const TERM: &str = "xterm-256color";
/// Variable with the terminal's id.
const ID_VARIABLE: &str = "PODLING_TERMINAL_ID";

/// Request to create a terminal.
#[derive(Debug, Clone, Default)]
pub struct CreateTerminal {
    /// Program, environment and directory. An empty `argv` means the program in `$SHELL`, which
    /// is started as a login shell if it is a shell.
    pub program: Program,
    pub size: WindowSize,
    /// Display name of at most 100 characters; the program's name if empty.
    pub name: String,
    /// Client-chosen id of at most 64 bytes that makes a retry return the same terminal; may be
    /// empty.
    pub request_id: String,
}

/// A program that was started on its own PTY.
pub(super) struct StartedProgram {
    pub(super) pty: Pty,
    pub(super) child: Child,
    pub(super) spec: TerminalSpec,
}

impl CreateTerminal {
    /// Returns an error if the name or the request id is too long.
    pub(super) fn validate(&self) -> Result<(), TerminalError> {
        if self.name.chars().count() > MAX_NAME_CHARS {
            return Err(TerminalError::BadField { field: "name", allowed: "at most 100 characters long" });
        }
        if self.request_id.len() > MAX_REQUEST_ID_BYTES {
            return Err(TerminalError::BadField { field: "request_id", allowed: "at most 64 bytes long" });
        }
        Ok(())
    }

    /// Starts the program on a new PTY, for the terminal `id`. Blocks for the time of a fork (about
    /// 1 ms).
    pub(super) fn start(
        mut self,
        id: &TerminalId,
        launcher: &Launcher,
        children: &Children,
    ) -> Result<StartedProgram, TerminalError> {
        let restart = is_interactive(&self.program.argv)
            .then(|| RestartSpec { argv: self.program.argv.clone(), env: self.program.env.clone() });
        if self.program.argv.is_empty() {
            self.program.argv = default_argv(launcher.shell());
        }
        let has_term =
            launcher.claims().borrow().as_ref().is_some_and(|claim| claim.env.contains_key("TERM"));
        if !has_term {
            self.program.env.entry("TERM".into()).or_insert_with(|| TERM.into());
        }
        // Programs in the terminal can tell which terminal they are in.
        self.program.env.insert(ID_VARIABLE.into(), id.to_string());
        let command = launcher.command(&self.program)?;
        let program = self.program.argv[0].clone();
        let pair = PtyPair::open(self.size)?;
        let (pty, child) = pair.spawn(command, children).map_err(|e| spawn_failed(&program, e))?;
        let name = if self.name.is_empty() {
            program.rsplit('/').next().unwrap_or_default().chars().take(MAX_NAME_CHARS).collect()
        } else {
            self.name
        };
        let argv = truncate_argv(&self.program.argv);
        let spec = TerminalSpec { name, argv, restart, request_id: self.request_id, size: self.size };
        Ok(StartedProgram { pty, child, spec })
    }
}
