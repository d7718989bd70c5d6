//! Launch of terminals: validates a create request, starts its program on a new PTY, and restores
//! saved terminals.
//!
//! An interactive shell is restarted below its history, because that repeats no effect of a
//! command. Any other program comes back as an ended terminal with its history.

use std::{path::Path, sync::Arc, time::SystemTime};

use podling_proto::error::with_causes;
use rustix::process::Signal;

use super::{
    journal::{JournalMetadata, JournalRecord, SavedExit, from_unix_nanos},
    pty::PtyPair,
    session::Terminal,
    types::{RestartSpec, TerminalError, TerminalExit, TerminalId, TerminalSpec, WindowSize},
};
use crate::{
    admission::AdmissionGate,
    child::{Children, ExitStatus},
    claim::Claim,
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
/// Resets modes that a program may have set and a shell does not expect: alternate screen, mouse
/// reports, bracketed paste, hidden cursor, margins, colours.
const RESET_MODES: &[u8] =
    b"\x1b[?1049l\x1b[?1l\x1b>\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[?25h\x1b[r\x1b[0m";
/// Names of shells, without their directory.
const SHELLS: [&str; 12] =
    ["sh", "bash", "dash", "zsh", "ksh", "mksh", "fish", "ash", "tcsh", "csh", "nu", "xonsh"];
/// Options whose next argument is a file.
const OPTIONS_WITH_FILE: [&str; 2] = ["--rcfile", "--init-file"];

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

impl CreateTerminal {
    /// Returns an error if the name or the request id is too long.
    pub(crate) fn validate(&self) -> Result<(), TerminalError> {
        if self.name.chars().count() > MAX_NAME_CHARS {
            return Err(TerminalError::BadField { field: "name", allowed: "at most 100 characters long" });
        }
        if self.request_id.len() > MAX_REQUEST_ID_BYTES {
            return Err(TerminalError::BadField { field: "request_id", allowed: "at most 64 bytes long" });
        }
        Ok(())
    }

    /// Starts the program on a new PTY, in a terminal that has not started. Blocks for the time of
    /// a fork (about 1 ms). If it fails, the terminal is unchanged.
    pub(crate) fn start(
        mut self,
        terminal: &mut Terminal,
        launcher: &Launcher,
        children: &Children,
    ) -> Result<(), TerminalError> {
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
        self.program.env.insert(ID_VARIABLE.into(), terminal.id().to_string());
        let command = launcher.command(&self.program)?;
        let program = &self.program.argv[0];
        let pair = PtyPair::open(self.size)?;
        let (pty, child) = pair.spawn(command, children).map_err(|e| spawn_failed(program, e))?;
        let name = if self.name.is_empty() {
            program.rsplit('/').next().unwrap_or_default().chars().take(MAX_NAME_CHARS).collect()
        } else {
            self.name
        };
        let argv = truncate_argv(&self.program.argv);
        let spec = TerminalSpec { name, argv, restart, request_id: self.request_id, size: self.size };
        terminal.start(spec, pty, child);
        Ok(())
    }
}

/// Restores one terminal. Blocks for the time of a fork (about 1 ms).
pub(crate) fn restore(
    record: JournalRecord,
    launcher: &Launcher,
    children: &Children,
    gate: &Arc<AdmissionGate>,
    claim: &Claim,
) -> Terminal {
    let JournalRecord { mut metadata, history } = record;
    let size = metadata.spec.size;
    metadata.spec.size = WindowSize::new(size.rows.into(), size.cols.into()).unwrap_or_default();
    let (id, created) = (TerminalId::new(&metadata.id), from_unix_nanos(metadata.created));
    let mut terminal = Terminal::new(id, created, claim, gate);
    terminal.set_saved_metadata(metadata.title.clone(), metadata.cwd.clone());
    history.iter().for_each(|piece| terminal.push_history(piece));
    if let (Some(exit), None) = (metadata.exit, metadata.slept) {
        // The program had ended by itself, before a sleep or a crash.
        terminal.restore_exit(metadata.spec, exit.exit());
        return terminal;
    }
    let reason = restore_reason(&metadata);
    if let Some(restart) = metadata.spec.restart.clone() {
        let (cwd, missing) = restored_cwd(&metadata, launcher.root());
        push_note(&mut terminal, &format!("{reason}{missing}"));
        let create = CreateTerminal {
            program: Program { argv: restart.argv, env: restart.env, cwd },
            size: metadata.spec.size,
            name: metadata.spec.name.clone(),
            request_id: metadata.spec.request_id.clone(),
        };
        let Err(error) = create.start(&mut terminal, launcher, children) else { return terminal };
        let error = with_causes(&error);
        tracing::error!(terminal = metadata.id, error, "failed to restart the shell of a terminal");
        push_note(&mut terminal, &format!("cannot restart the shell: {error}"));
    } else {
        push_note(&mut terminal, &format!("{reason}; the program ended and was not restarted"));
    }
    let killed = TerminalExit {
        status: ExitStatus::Signal(Signal::KILL.as_raw()),
        final_offset: 0,
        ended_at: from_unix_nanos(metadata.saved),
        held_by_background: false,
    };
    let exit = metadata.exit.map_or(killed, SavedExit::exit);
    terminal.restore_exit(metadata.spec, exit);
    terminal
}

/// Describes to the user how the terminal ended.
fn restore_reason(metadata: &JournalMetadata) -> String {
    let shown = httpdate::fmt_http_date;
    match metadata.slept {
        Some(slept) => {
            format!("slept from {} to {}", shown(from_unix_nanos(slept)), shown(SystemTime::now()))
        }
        None => format!(
            "restored after the agent was killed; output after {} may be missing",
            shown(from_unix_nanos(metadata.saved))
        ),
    }
}

/// Appends one dim line of text below the history.
fn push_note(terminal: &mut Terminal, text: &str) {
    // A quoted error or path may contain control characters.
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    terminal.push_history(RESET_MODES);
    terminal.push_history(format!("\r\n\x1b[2m[podling: {text}]\x1b[0m\r\n").as_bytes());
}

/// Returns the saved directory. If it is gone, returns the home directory and a note that says so.
fn restored_cwd(metadata: &JournalMetadata, home: &Path) -> (String, String) {
    if metadata.cwd.is_empty() {
        return (String::new(), String::new());
    }
    // Resolved in the same way as the launcher resolves it.
    if home.join(&metadata.cwd).is_dir() {
        return (metadata.cwd.clone(), String::new());
    }
    (String::new(), format!("; {} is gone, so this is the home directory", metadata.cwd))
}

// === shells ===

/// Returns the command line of a terminal without a command. A shell is started as a login shell.
/// `$SHELL` may name any other program, such as an interpreter of Python, to which `-l` means
/// something else or nothing. That program gets no arguments.
fn default_argv(shell: String) -> Vec<String> {
    let login = is_shell(&shell).then(|| "-l".to_owned());
    [shell].into_iter().chain(login).collect()
}

/// Returns whether the program is a shell, by its file name.
fn is_shell(program: &str) -> bool {
    let name = program.rsplit('/').next().unwrap_or_default();
    // A login shell's name may start with a dash.
    SHELLS.contains(&name.strip_prefix('-').unwrap_or(name))
}

/// Returns whether the command is a shell that reads its commands from the user, not from a script
/// or an argument. An empty `argv` means the shell of the workspace. A shell with unknown short
/// options, or with options of the form `--name=value`, is not treated as interactive.
fn is_interactive(argv: &[String]) -> bool {
    let Some((program, mut options)) = argv.split_first() else { return true };
    if !is_shell(program) {
        return false;
    }
    while let Some((option, rest)) = options.split_first() {
        options = match option.as_str() {
            long if OPTIONS_WITH_FILE.contains(&long) => rest.get(1..).unwrap_or_default(),
            "--command" => return false,
            long if long.starts_with("--") && long.len() > 2 && !long.contains('=') => rest,
            // These letters only change how the shell runs; `c` and `s` change what it reads.
            short if is_letters(short, "ilnrvx") => rest,
            _ => return false,
        };
    }
    true
}

fn is_letters(option: &str, allowed: &str) -> bool {
    option
        .strip_prefix('-')
        .is_some_and(|letters| !letters.is_empty() && letters.chars().all(|letter| allowed.contains(letter)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_shells_are_started_as_login_shells() {
        for (shell, args) in [
            ("/bin/bash", &["-l"][..]),
            ("/usr/bin/fish", &["-l"]),
            ("/usr/bin/python3", &[]),
            ("/usr/bin/ipython", &[]),
            ("/opt/bash/menu", &[]),
        ] {
            let argv = default_argv(shell.to_owned());
            assert_eq!(
                (argv[0].as_str(), &argv[1..]),
                (shell, &args.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>()[..])
            );
        }
    }

    fn is(line: &str) -> bool {
        is_interactive(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn interactive_shells_are_recognised() {
        for line in
            ["", "bash", "/bin/bash -l", "-zsh", "bash -il", "bash --norc --rcfile /x -i", "fish --private"]
        {
            assert!(is(line), "{line}");
        }
        for line in [
            "htop",
            "python3",
            "bash -c ls",
            "bash -lc ls",
            "sh script",
            "bash -l script",
            "bash -s",
            "fish --command=ls",
            "fish --command ls",
            "bash --",
            "bashful",
        ] {
            assert!(!is(line), "{line}");
        }
    }
}
