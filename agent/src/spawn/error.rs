//! Why a program does not start, in words for whoever asked.

use std::io;

use rustix::io::Errno;

/// Why a program does not run. Nothing was left behind.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The agent serves no workspace, so there is no environment to start it in.
    #[error("this agent serves no workspace yet")]
    Unclaimed,
    /// `argv`, `env` or `cwd` cannot be passed to a program.
    #[error("{field}: {problem}")]
    BadField {
        /// Which.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// There is no such program.
    #[error("{program}: no such program{}", in_path(.searched))]
    NotFound {
        /// As asked for.
        program: String,
        /// The PATH that was searched, unless a path was given.
        searched: Option<String>,
    },
    /// It is there but may not or cannot be run.
    #[error("{program}: {problem}")]
    NotExecutable {
        /// The file.
        program: String,
        /// A folder, no permission, not a program.
        problem: &'static str,
    },
    /// Its `#!` line names an interpreter that is not there or cannot run.
    #[error("{program}: its interpreter {interpreter} cannot be run; look at its first line")]
    BadInterpreter {
        /// The script.
        program: String,
        /// As its first line has it.
        interpreter: String,
    },
    /// The working folder cannot be entered.
    #[error("cannot enter the working folder {cwd}")]
    BadCwd {
        /// As asked for.
        cwd: String,
        /// Why.
        source: io::Error,
    },
    /// The system has no more of something (files, processes, memory).
    #[error("the system has nothing left to start {program} with")]
    Exhausted {
        /// The file.
        program: String,
        /// ENOMEM, EAGAIN, EMFILE or ENFILE.
        source: io::Error,
    },
    /// The kernel refused for another reason.
    #[error("cannot start {program}")]
    Exec {
        /// The file.
        program: String,
        /// Why.
        source: io::Error,
    },
}

/// What a failed spawn of a [`Launcher::command`](super::Launcher::command) means.
pub fn spawn_failed(program: &str, source: io::Error) -> SpawnError {
    let program = program.to_owned();
    match Errno::from_io_error(&source) {
        Some(Errno::NOEXEC) => {
            SpawnError::NotExecutable { program, problem: "is not a program this machine can run" }
        }
        Some(Errno::ACCESS) => SpawnError::NotExecutable { program, problem: "permission denied" },
        Some(Errno::TXTBSY) => SpawnError::NotExecutable { program, problem: "is being written to" },
        Some(Errno::NOENT) => {
            SpawnError::NotExecutable { program, problem: "a file it needs (its loader) is missing" }
        }
        Some(Errno::TOOBIG) => {
            SpawnError::BadField { field: "argv", problem: "arguments and environment are too long".into() }
        }
        Some(Errno::NOMEM | Errno::AGAIN | Errno::MFILE | Errno::NFILE) => {
            SpawnError::Exhausted { program, source }
        }
        _ => SpawnError::Exec { program, source },
    }
}

fn in_path(searched: &Option<String>) -> String {
    searched.as_ref().map(|path| format!(" in PATH ({path})")).unwrap_or_default()
}
