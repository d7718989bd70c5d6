//! Errors of preparing and spawning a program. `api` maps them to gRPC reasons.

use std::io;

use rustix::io::Errno;

/// Why a program did not start. No process of it runs.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The agent has no claim, so there is no environment to start a program in.
    #[error("this agent is not claimed for a workspace yet; retry later")]
    Unclaimed,
    /// `argv`, `env` or `cwd` cannot be passed to a program.
    #[error("{field}: {problem}")]
    BadField { field: &'static str, problem: String },
    #[error("{program}: no such program{}", in_path(.searched))]
    NotFound {
        /// Name or path, as the caller wrote it.
        program: String,
        /// The PATH that was searched, unless `program` is a path.
        searched: Option<String>,
    },
    /// The file exists but cannot be executed.
    #[error("{program}: {problem}")]
    NotExecutable {
        program: String,
        /// The obstacle, such as a missing permission or an unknown format.
        problem: &'static str,
    },
    /// The interpreter of a `#!` line does not exist or is not executable.
    #[error("{program}: cannot run its interpreter {interpreter}; check the first line of the script")]
    BadInterpreter {
        /// Name or path of the script, as the caller wrote it.
        program: String,
        /// Path in the script's first line.
        interpreter: String,
    },
    #[error("cannot enter the working directory {cwd}")]
    BadCwd {
        /// Resolved against the workspace root.
        cwd: String,
        source: io::Error,
    },
    /// The system is out of descriptors, processes or memory.
    #[error("cannot start {program}: the system is out of processes, memory or file descriptors")]
    Exhausted {
        program: String,
        /// ENOMEM, EAGAIN, EMFILE or ENFILE.
        source: io::Error,
    },
    /// The fork or `exec` failed with any other error.
    #[error("cannot start {program}")]
    Exec { program: String, source: io::Error },
}

/// Converts the error of spawning a [`Launcher::command`](super::Launcher::command).
pub fn spawn_failed(program: &str, source: io::Error) -> SpawnError {
    let program = program.to_owned();
    match Errno::from_io_error(&source) {
        Some(Errno::NOEXEC) => {
            SpawnError::NotExecutable { program, problem: "this machine cannot run this format" }
        }
        Some(Errno::ACCESS) => SpawnError::NotExecutable { program, problem: "permission denied" },
        Some(Errno::TXTBSY) => {
            SpawnError::NotExecutable { program, problem: "another process has it open for writing" }
        }
        Some(Errno::NOENT) => {
            SpawnError::NotExecutable { program, problem: "its loader or a file that it needs is missing" }
        }
        Some(Errno::TOOBIG) => SpawnError::BadField {
            field: "argv",
            problem: "arguments and environment exceed the kernel's limit; put some into a file".into(),
        },
        Some(Errno::NOMEM | Errno::AGAIN | Errno::MFILE | Errno::NFILE) => {
            SpawnError::Exhausted { program, source }
        }
        _ => SpawnError::Exec { program, source },
    }
}

fn in_path(searched: &Option<String>) -> String {
    searched.as_ref().map(|path| format!(" in PATH ({path})")).unwrap_or_default()
}
