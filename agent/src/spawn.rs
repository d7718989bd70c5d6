//! Starting a program: finding it, saying why it cannot start, and building its environment.
//!
//! Terminals and processes share this, so that the same mistake gives the same words everywhere. Everything is checked before
//! the fork; what only `exec` can know comes back as its errno.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsStr,
    fs::File,
    io::{self, Read},
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use rustix::fs::{Access, access};
use rustix::io::Errno;

use crate::claim::Claims;

/// Longest interpreter line the kernel reads (BINPRM_BUF_SIZE).
const SHEBANG_BYTES: usize = 256;
/// Arguments and added variables of one program together, in bytes; more is refused before anything is started. Both are kept as
/// long as the terminal or process is listed, so this bounds the agent's memory and not only what the kernel takes (2 MiB with the
/// usual stack). Whatever is longer belongs into a file or on stdin.
const ARGUMENT_BYTES: usize = 256 * 1024;
/// Longest single argument or `NAME=value` that the kernel takes (MAX_ARG_STRLEN with its closing NUL).
const ARGUMENT_LONGEST_BYTES: usize = 128 * 1024 - 1;
/// Longest working folder, as the kernel has it (PATH_MAX with its closing NUL).
const CWD_BYTES: usize = 4095;

/// Searched when the environment has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Given to programs that would otherwise have none.
const DEFAULT_LANG: &str = "C.UTF-8";

/// What somebody asked to start.
#[derive(Debug, Clone, Default)]
pub struct Program {
    /// Program and arguments; at least one.
    pub argv: Vec<String>,
    /// Added to the workspace's environment.
    pub env: HashMap<String, String>,
    /// Relative to the workspace root, or absolute; empty: the root.
    pub cwd: String,
}

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

/// Where and with what programs are started.
#[derive(Debug, Clone)]
pub struct Launcher {
    root: Arc<Path>,
    claims: Claims,
    inherited: Arc<BTreeMap<String, String>>,
}

impl Program {
    /// Within the bounds of what is taken.
    fn fits(&self) -> Result<(), SpawnError> {
        let too_long = |field, what, most| {
            let problem = format!("{what} at most {most} bytes; put more into a file or on stdin");
            Err(SpawnError::BadField { field, problem })
        };
        let argv = self.argv.iter().map(String::len);
        let env = self.env.iter().map(|(name, value)| name.len() + 1 + value.len());
        if argv.clone().any(|bytes| bytes > ARGUMENT_LONGEST_BYTES) {
            return too_long("argv", "each argument has", ARGUMENT_LONGEST_BYTES);
        }
        if env.clone().any(|bytes| bytes > ARGUMENT_LONGEST_BYTES) {
            return too_long("env", "each variable has", ARGUMENT_LONGEST_BYTES);
        }
        // Each with its closing NUL, as the kernel counts: a crowd of empty ones is bounded too.
        if argv.chain(env).map(|bytes| bytes + 1).sum::<usize>() > ARGUMENT_BYTES {
            return too_long("argv", "with env it has", ARGUMENT_BYTES);
        }
        if self.cwd.len() > CWD_BYTES {
            return too_long("cwd", "it has", CWD_BYTES);
        }
        Ok(())
    }
}

impl Launcher {
    /// Programs start in `root` with the claim's environment.
    pub fn new(root: impl Into<Arc<Path>>, claims: Claims) -> Self {
        Self { root: root.into(), claims, inherited: Arc::default() }
    }

    /// Programs also see these variables where the claim sets no other value: what the image's ENV gave the agent. What is meant
    /// for the agent itself (`PODLING_…`) stays with it.
    #[must_use]
    pub fn inheriting(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let ours = |(name, _): &(String, String)| name.starts_with("PODLING_");
        self.inherited = Arc::new(variables.into_iter().filter(|v| !ours(v)).collect());
        self
    }

    /// The workspace root: HOME.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The claim that is served now.
    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// A command that is ready to be spawned: program found and runnable, folder enterable, environment complete.
    pub fn command(&self, program: &Program) -> Result<Command, SpawnError> {
        program.fits()?;
        let env = self.environment(&program.env)?;
        let (name, args) =
            program.argv.split_first().filter(|(name, _)| !name.is_empty()).ok_or_else(|| {
                SpawnError::BadField {
                    field: "argv",
                    problem: "names no program; give at least one word".into(),
                }
            })?;
        if program.argv.iter().any(|a| a.contains('\0')) {
            return Err(SpawnError::BadField { field: "argv", problem: "holds a NUL byte".into() });
        }
        let cwd = self.enterable(&program.cwd)?;
        let path = find(name, &cwd, env.get("PATH").map_or(DEFAULT_PATH, String::as_str))?;
        runnable(name, &path)?;
        let mut command = Command::new(&path);
        // The program sees the name it was called by, as a shell would pass it.
        std::os::unix::process::CommandExt::arg0(&mut command, name);
        command.args(args).current_dir(cwd).env_clear().envs(env);
        Ok(command)
    }

    /// The workspace's shell: `$SHELL` of the claim or the image, else bash, else sh.
    pub fn shell(&self) -> String {
        let claim = self.claims.borrow().clone();
        let claimed = claim.and_then(|c| c.env.get("SHELL").cloned());
        let named =
            claimed.or_else(|| self.inherited.get("SHELL").cloned()).filter(|s| is_executable(Path::new(s)));
        let known = ["/bin/bash", "/usr/bin/bash"].into_iter().find(|s| is_executable(Path::new(s)));
        named.unwrap_or_else(|| known.unwrap_or("/bin/sh").to_owned())
    }

    fn environment(&self, added: &HashMap<String, String>) -> Result<BTreeMap<String, String>, SpawnError> {
        let claim = self.claims.borrow().clone().ok_or(SpawnError::Unclaimed)?;
        if let Some((key, _)) =
            added.iter().find(|(k, v)| k.is_empty() || k.contains(['=', '\0']) || v.contains('\0'))
        {
            let problem = format!("{key:?} is no name of a variable, or its value holds a NUL byte");
            return Err(SpawnError::BadField { field: "env", problem });
        }
        let mut env = BTreeMap::clone(&self.inherited);
        env.extend(claim.env.clone());
        env.entry("PATH".into()).or_insert_with(|| DEFAULT_PATH.into());
        // Without it half of all programs take everything beyond ASCII for garbage.
        env.entry("LANG".into()).or_insert_with(|| DEFAULT_LANG.into());
        env.entry("SHELL".into()).or_insert_with(|| self.shell());
        env.insert("HOME".into(), self.root.to_string_lossy().into_owned());
        env.extend(added.iter().map(|(k, v)| (k.clone(), v.clone())));
        // Last: the control plane finds what a dead agent left by this mark, so no caller may change it.
        env.insert("PODLING_WORKSPACE_ID".into(), claim.workspace_id.clone());
        env.insert("PODLING_WORKSPACE".into(), claim.workspace_name.clone());
        Ok(env)
    }

    fn enterable(&self, cwd: &str) -> Result<PathBuf, SpawnError> {
        if cwd.contains('\0') {
            return Err(SpawnError::BadField { field: "cwd", problem: "holds a NUL byte".into() });
        }
        let path = self.root.join(cwd);
        let bad = |source| SpawnError::BadCwd { cwd: path.display().to_string(), source };
        if !path.metadata().map_err(bad)?.is_dir() {
            return Err(bad(io::ErrorKind::NotADirectory.into()));
        }
        access(&path, Access::EXEC_OK).map_err(|e| bad(e.into()))?;
        Ok(path)
    }
}

/// What a failed spawn of a [`Launcher::command`] means.
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

fn find(name: &str, cwd: &Path, path: &str) -> Result<PathBuf, SpawnError> {
    if name.contains('/') {
        let file = cwd.join(name);
        return match file.metadata() {
            Ok(_) => Ok(file),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                Err(SpawnError::NotExecutable { program: name.into(), problem: "permission denied" })
            }
            Err(_) => Err(SpawnError::NotFound { program: name.into(), searched: None }),
        };
    }
    let candidates = || path.split(':').map(|dir| cwd.join(dir).join(name));
    candidates()
        .find(|file| is_executable(file))
        // As a shell: a file that is there but may not be run is worth naming.
        .or_else(|| candidates().find(|file| file.is_file()))
        .ok_or_else(|| SpawnError::NotFound { program: name.into(), searched: Some(path.to_owned()) })
}

fn runnable(name: &str, path: &Path) -> Result<(), SpawnError> {
    let not = |problem| SpawnError::NotExecutable { program: name.to_owned(), problem };
    let meta = path.metadata().map_err(|_| not("cannot be looked at"))?;
    if meta.is_dir() {
        return Err(not("is a folder"));
    }
    if !is_executable(path) {
        return Err(not("permission denied: it is not executable (chmod +x)"));
    }
    let mut head = Vec::with_capacity(SHEBANG_BYTES);
    // A program may be executable but not readable; then the kernel alone knows its interpreter.
    if let Ok(file) = File::open(path) {
        let _read = file.take(SHEBANG_BYTES as u64).read_to_end(&mut head);
    }
    if !head.is_empty() && !head.starts_with(b"#!") && !is_program(&head) && !has_other_formats() {
        // Asked to run it, the C library would hand it to sh, which prints nonsense.
        return Err(not("is neither a program for this machine nor a script with a #! line"));
    }
    match interpreter(&head) {
        Some(interpreter) if !is_executable(Path::new(OsStr::from_bytes(interpreter))) => {
            Err(SpawnError::BadInterpreter {
                program: name.to_owned(),
                interpreter: String::from_utf8_lossy(interpreter).into_owned(),
            })
        }
        _ => Ok(()),
    }
}

/// The interpreter that a `#!` line names.
fn interpreter(head: &[u8]) -> Option<&[u8]> {
    let line = head.strip_prefix(b"#!")?.split(|b| *b == b'\n').next()?.trim_ascii_start();
    line.split(|b| b.is_ascii_whitespace() && *b != b'\r').next().filter(|word| !word.is_empty())
}

/// Whether this is the beginning of an ELF file for this machine, or for the 32-bit machine it can be.
fn is_program(head: &[u8]) -> bool {
    const MACHINE: std::ops::Range<usize> = 18..20;
    const ARM: [u8; 2] = [40, 0];
    const I386: [u8; 2] = [3, 0];
    let mut own = [0; 20];
    // Our own program is one, so the kernel's view of this machine need not be asked for.
    let known = File::open("/proc/self/exe").and_then(|mut file| file.read_exact(&mut own)).is_ok();
    head.starts_with(b"\x7fELF")
        && head
            .get(MACHINE)
            .is_some_and(|machine| !known || machine == &own[MACHINE] || machine == ARM || machine == I386)
}

/// Whether the kernel was taught other formats (binfmt_misc); then it alone knows what it can run.
fn has_other_formats() -> bool {
    // `register` and `status` are always there.
    std::fs::read_dir("/proc/sys/fs/binfmt_misc").is_ok_and(|entries| entries.count() > 2)
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
        && access(path, Access::EXEC_OK).is_ok()
}

fn in_path(searched: &Option<String>) -> String {
    searched.as_ref().map(|path| format!(" in PATH ({path})")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_see_the_images_variables_under_the_claims() {
        let env = [("PATH", "/claim"), ("LANG", "de_DE.UTF-8")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let claim = crate::claim::Claim {
            workspace_id: "abcdefghijkl".into(),
            workspace_name: "demo".into(),
            epoch: 1,
            policy: Default::default(),
            env: env.into(),
            command: Vec::new(),
            token_keys: Default::default(),
        };
        let (_claims, claims) = tokio::sync::watch::channel(Some(Arc::new(claim)));
        let image = [("PATH", "/image"), ("JAVA_HOME", "/jdk"), ("PODLING_AGENT_LISTEN", "unix:/run/a")];
        let image = image.map(|(k, v)| (k.to_owned(), v.to_owned()));
        let launcher = Launcher::new(Path::new("/"), claims).inheriting(image);
        let forged = HashMap::from([("PODLING_WORKSPACE_ID".to_owned(), "another".to_owned())]);
        let env = launcher.environment(&forged).expect("claimed");
        let get = |name: &str| env.get(name).map(String::as_str);
        assert_eq!(
            (get("PATH"), get("LANG"), get("JAVA_HOME")),
            (Some("/claim"), Some("de_DE.UTF-8"), Some("/jdk"))
        );
        assert_eq!(get("PODLING_AGENT_LISTEN"), None, "the agent's own affairs");
        assert!(get("SHELL").is_some());
        assert_eq!(
            get("PODLING_WORKSPACE_ID"),
            Some("abcdefghijkl"),
            "nobody forges the mark of another workspace"
        );
    }

    #[test]
    fn what_is_too_long_is_refused_by_name_before_anything_starts() {
        let word = |bytes: usize| "x".repeat(bytes);
        let refused = |program: &Program| match program.fits() {
            Err(SpawnError::BadField { field, problem }) => format!("{field}: {problem}"),
            other => panic!("taken: {other:?}"),
        };
        let longest =
            Program { argv: vec!["true".into(), word(ARGUMENT_LONGEST_BYTES)], ..Program::default() };
        assert!(longest.fits().is_ok());
        let argv = vec!["true".into(), word(ARGUMENT_LONGEST_BYTES + 1)];
        let long = Program { argv, ..Program::default() };
        assert!(refused(&long).starts_with("argv: each argument has at most 131071 bytes"));
        let many = Program { argv: vec![String::new(); ARGUMENT_BYTES + 1], ..Program::default() };
        assert!(refused(&many).starts_with("argv: with env it has at most 262144 bytes"));
        let env = HashMap::from([("A".to_owned(), word(ARGUMENT_LONGEST_BYTES))]);
        assert!(refused(&Program { env, ..longest.clone() }).starts_with("env: each variable has"));
        assert!(
            refused(&Program { cwd: word(CWD_BYTES + 1), ..longest }).starts_with("cwd: it has at most 4095")
        );
    }

    #[test]
    fn the_interpreter_of_a_script_is_found_as_the_kernel_finds_it() {
        assert_eq!(interpreter(b"#!/bin/sh\n"), Some(&b"/bin/sh"[..]));
        assert_eq!(interpreter(b"#! /usr/bin/env python3\n"), Some(&b"/usr/bin/env"[..]));
        assert_eq!(
            interpreter(b"#!/bin/sh\r\n"),
            Some(&b"/bin/sh\r"[..]),
            "a DOS line ending is part of the name"
        );
        assert_eq!(interpreter(b"\x7fELF"), None);
    }
}
