//! Prepares programs for spawning: finds them, checks them, and builds their environment.
//!
//! Terminals and processes share this code, so that they report the same errors. All checks happen
//! before the fork. Errors that only `exec` detects are reported by their errno.

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

use rustix::{
    fs::{Access, access},
    io::Errno,
};

use crate::{
    account::{Account, AccountSource},
    claim::{Claim, ClaimReceiver},
};

/// PATH of programs whose environment sets none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// LANG of programs whose environment sets none.
const DEFAULT_LANG: &str = "C.UTF-8";

/// File names of programs that system accounts have as their shell. They print a refusal, or
/// nothing, and exit.
const NO_LOGIN: [&str; 3] = ["nologin", "false", "true"];

/// Prompt of bash for a user whose name programs may not find. Without it, bash shows "I have no
/// name!". A prompt that the image's own start-up files set takes precedence.
const NAMELESS_PROMPT: &str = r"podling@\h:\w\$ ";

/// Longest argument, and longest variable with its value: the kernel's MAX_ARG_STRLEN without the
/// NUL. Longer ones are rejected.
const MAX_WORD_BYTES: usize = 128 * 1024 - 1;
/// Total size of the arguments and variables of a request, each with its NUL and pointer, as the
/// kernel counts them. Larger requests are rejected. The kernel allows 2 MiB with the usual stack
/// of 8 MiB, of which the workspace's own environment needs a part.
const MAX_PROGRAM_BYTES: usize = 1024 * 1024;
/// Cost of an argument or variable beyond its own bytes.
const WORD_OVERHEAD_BYTES: usize = 9;
/// Longest path of a working directory: PATH_MAX without the NUL. Longer ones are rejected.
const MAX_CWD_BYTES: usize = 4095;
/// Bytes of arguments that are retained for display. A list of all processes must fit into one
/// message of 4 MiB.
const MAX_DISPLAY_BYTES: usize = 4096;

/// Bytes of a file in which the kernel looks for an interpreter line (BINPRM_BUF_SIZE).
const SHEBANG_BYTES: usize = 256;

/// A program that a client requests to start.
#[derive(Debug, Clone, Default)]
pub struct Program {
    /// Program and arguments; at least one.
    pub argv: Vec<String>,
    /// Variables that are added to the workspace's environment.
    pub env: HashMap<String, String>,
    /// Working directory, absolute or relative to the workspace root. Empty means the root.
    pub cwd: String,
}

/// Builds commands that run in the workspace.
#[derive(Debug, Clone)]
pub struct Launcher {
    root: Arc<Path>,
    claims: ClaimReceiver,
    inherited: Arc<BTreeMap<String, String>>,
    account: Arc<AccountVariables>,
}

/// Environment variables of programs that describe their user.
#[derive(Debug, Default)]
struct AccountVariables {
    /// USER and LOGNAME of programs whose environment sets none.
    user: Option<String>,
    /// Whether a lookup of the uid may find no name.
    nameless: bool,
}

impl Launcher {
    /// Creates a launcher for programs in `root` with the claim's environment.
    pub fn new(root: impl Into<Arc<Path>>, claims: ClaimReceiver) -> Self {
        Self { root: root.into(), claims, inherited: Arc::default(), account: Arc::default() }
    }

    /// Sets the user that programs without USER and LOGNAME in their environment run as.
    #[must_use]
    pub fn with_account(mut self, account: &Account) -> Self {
        let nameless = account.source == AccountSource::NameService;
        self.account = Arc::new(AccountVariables { user: account.user.clone(), nameless });
        self
    }

    /// Adds variables of the agent's own environment, such as those of the image's ENV. The claim's
    /// variables override them. Drops `PODLING_…` variables, which are for the agent itself.
    #[must_use]
    pub fn inheriting(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let ours = |(name, _): &(String, String)| name.starts_with("PODLING_");
        self.inherited = Arc::new(variables.into_iter().filter(|v| !ours(v)).collect());
        self
    }

    /// Returns the workspace root, which is also the HOME of all programs.
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn claims(&self) -> &ClaimReceiver {
        &self.claims
    }

    /// Returns the claim, or an error while there is none.
    pub fn claim(&self) -> Result<Arc<Claim>, SpawnError> {
        self.claims.borrow().clone().ok_or(SpawnError::Unclaimed)
    }

    /// Checks a program, and returns a command with its complete environment. The program is
    /// executable and the working directory accessible, as far as can be checked before `exec`.
    pub fn command(&self, program: &Program) -> Result<Command, SpawnError> {
        check_bounds(program)?;
        let env = self.environment(&program.env)?;
        let (name, args) = program
            .argv
            .split_first()
            .filter(|(name, _)| !name.is_empty())
            .ok_or_else(|| bad("argv", "must contain at least the program"))?;
        if program.argv.iter().any(|a| a.contains('\0')) {
            return Err(bad("argv", "must not contain a NUL byte"));
        }
        let cwd = self.resolve_cwd(&program.cwd)?;
        let path = find(name, &cwd, env.get("PATH").map_or(DEFAULT_PATH, String::as_str))?;
        runnable(name, &path)?;
        let mut command = Command::new(&path);
        // The program sees the name that the caller used, as when a shell starts it.
        std::os::unix::process::CommandExt::arg0(&mut command, name);
        command.args(args).current_dir(cwd).env_clear().envs(env);
        Ok(command)
    }

    /// Returns the absolute path of the program that a terminal opens: `$SHELL` of the claim or the
    /// image, else bash, else sh. A `$SHELL` without a slash is searched in PATH. A `$SHELL` that
    /// cannot be executed, or that only refuses logins, is ignored.
    pub fn shell(&self) -> String {
        let claim = self.claims.borrow().clone();
        let variable = |name: &str| {
            let claimed = claim.as_ref().and_then(|claim| claim.env.get(name));
            claimed.or_else(|| self.inherited.get(name)).map(String::as_str)
        };
        let named = variable("SHELL").filter(|shell| !shell.is_empty()).and_then(|shell| {
            let path = find(shell, &self.root, variable("PATH").unwrap_or(DEFAULT_PATH)).ok()?;
            let name = path.file_name()?.to_str()?;
            let opens = !NO_LOGIN.contains(&name) && runnable(shell, &path).is_ok();
            opens.then(|| path.to_str().map(str::to_owned))?
        });
        let known = ["/bin/bash", "/usr/bin/bash"].into_iter().find(|s| is_executable(Path::new(s)));
        named.unwrap_or_else(|| known.unwrap_or("/bin/sh").to_owned())
    }

    fn environment(&self, added: &HashMap<String, String>) -> Result<BTreeMap<String, String>, SpawnError> {
        let claim = self.claim()?;
        if let Some((key, _)) = added.iter().find(|(name, value)| !is_variable(name, value)) {
            let problem = format!("{key:?} is not a valid variable name, or its value contains a NUL byte");
            return Err(bad("env", problem));
        }
        let mut env = BTreeMap::clone(&self.inherited);
        env.extend(claim.env.clone());
        env.entry("PATH".into()).or_insert_with(|| DEFAULT_PATH.into());
        // Without a UTF-8 locale many programs mishandle all characters beyond ASCII.
        env.entry("LANG".into()).or_insert_with(|| DEFAULT_LANG.into());
        env.entry("SHELL".into()).or_insert_with(|| self.shell());
        if let Some(user) = &self.account.user {
            let user = env.entry("USER".into()).or_insert_with(|| user.clone()).clone();
            env.entry("LOGNAME".into()).or_insert(user);
        }
        if self.account.nameless && env.get("SHELL").is_some_and(|shell| shell.ends_with("/bash")) {
            env.entry("PS1".into()).or_insert_with(|| NAMELESS_PROMPT.into());
        }
        env.insert("HOME".into(), self.root.to_string_lossy().into_owned());
        env.extend(added.iter().map(|(k, v)| (k.clone(), v.clone())));
        // Inserted last, so that no caller can override them. The control plane finds the processes
        // that a dead agent left behind by PODLING_WORKSPACE_ID.
        env.insert("PODLING_WORKSPACE_ID".into(), claim.workspace_id.clone());
        env.insert("PODLING_WORKSPACE".into(), claim.workspace_name.clone());
        Ok(env)
    }

    fn resolve_cwd(&self, cwd: &str) -> Result<PathBuf, SpawnError> {
        if cwd.contains('\0') {
            return Err(bad("cwd", "must not contain a NUL byte"));
        }
        let path = self.root.join(cwd);
        let failed = |source| SpawnError::BadCwd { cwd: path.display().to_string(), source };
        if !path.metadata().map_err(failed)?.is_dir() {
            return Err(failed(io::ErrorKind::NotADirectory.into()));
        }
        access(&path, Access::EXEC_OK).map_err(|e| failed(e.into()))?;
        Ok(path)
    }
}

/// Checks that a program's arguments, environment and directory are within bounds.
fn check_bounds(program: &Program) -> Result<(), SpawnError> {
    let argv = || program.argv.iter().map(String::len);
    let env = || program.env.iter().map(|(name, value)| name.len() + 1 + value.len());
    for (field, what, longest) in [("argv", "argument", argv().max()), ("env", "variable", env().max())] {
        if let Some(bytes) = longest.filter(|bytes| *bytes > MAX_WORD_BYTES) {
            let problem = format!("one {what} has {bytes} bytes; at most {MAX_WORD_BYTES} are allowed");
            return Err(bad(field, problem));
        }
    }
    let cost = |lengths: &mut dyn Iterator<Item = usize>| -> usize {
        lengths.map(|bytes| bytes + WORD_OVERHEAD_BYTES).sum()
    };
    let (argv, env) = (cost(&mut argv()), cost(&mut env()));
    if argv + env > MAX_PROGRAM_BYTES {
        let problem = format!(
            "arguments and environment have {} bytes (with {WORD_OVERHEAD_BYTES} more for each \
             argument and variable); at most {MAX_PROGRAM_BYTES} are allowed, so put the rest into a file",
            argv + env
        );
        return Err(bad(if argv >= env { "argv" } else { "env" }, problem));
    }
    if program.cwd.len() > MAX_CWD_BYTES {
        let bytes = program.cwd.len();
        return Err(bad("cwd", format!("has {bytes} bytes; at most {MAX_CWD_BYTES} are allowed")));
    }
    Ok(())
}

/// Returns whether a variable with this name and value can be passed to a program.
pub(crate) fn is_variable(name: &str, value: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0')
}

/// Truncates arguments to 4 KiB for display. The truncated argument ends with `…`, and those after
/// it are dropped.
pub fn truncate_argv(argv: &[String]) -> Vec<String> {
    let mut bytes_left = MAX_DISPLAY_BYTES;
    let mut kept = Vec::new();
    for word in argv {
        if word.len() + 1 > bytes_left {
            let cut = word.floor_char_boundary(bytes_left.saturating_sub(1));
            kept.push(format!("{}…", &word[..cut]));
            break;
        }
        bytes_left -= word.len() + 1;
        kept.push(word.clone());
    }
    kept
}

/// Resolves a program's name against PATH, or a path against `cwd`, as a shell does.
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
        // Like a shell, returns a file that exists but is not executable, for a better error.
        .or_else(|| candidates().find(|file| file.is_file()))
        .ok_or_else(|| SpawnError::NotFound { program: name.into(), searched: Some(path.to_owned()) })
}

/// Fails if the file certainly cannot be executed. Only `exec` detects the remaining errors.
fn runnable(name: &str, path: &Path) -> Result<(), SpawnError> {
    let not = |problem| SpawnError::NotExecutable { program: name.to_owned(), problem };
    let meta = path.metadata().map_err(|_| not("cannot read its metadata"))?;
    if meta.is_dir() {
        return Err(not("is a directory"));
    }
    if !is_executable(path) {
        return Err(not("permission denied; make it executable with chmod +x"));
    }
    let mut head = Vec::with_capacity(SHEBANG_BYTES);
    // A program may be executable but not readable. Then only the kernel knows its interpreter.
    if let Ok(file) = File::open(path) {
        let _read = file.take(SHEBANG_BYTES as u64).read_to_end(&mut head);
    }
    if !head.is_empty() && !head.starts_with(b"#!") && !is_program(&head) && !has_other_formats() {
        // The C library would run such a file with sh, which prints misleading errors.
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

/// Returns the interpreter that a `#!` line names.
fn interpreter(head: &[u8]) -> Option<&[u8]> {
    let line = head.strip_prefix(b"#!")?.split(|b| *b == b'\n').next()?.trim_ascii_start();
    line.split(|b| b.is_ascii_whitespace() && *b != b'\r').next().filter(|word| !word.is_empty())
}

/// Returns whether `head` begins an ELF file for this machine, or for its 32-bit variant.
fn is_program(head: &[u8]) -> bool {
    const MACHINE: std::ops::Range<usize> = 18..20;
    const ARM: [u8; 2] = [40, 0];
    const I386: [u8; 2] = [3, 0];
    let mut own = [0; 20];
    // The agent's own executable runs on this machine, so its header shows the machine type.
    let known = File::open("/proc/self/exe").and_then(|mut file| file.read_exact(&mut own)).is_ok();
    head.starts_with(b"\x7fELF")
        && head
            .get(MACHINE)
            .is_some_and(|machine| !known || machine == &own[MACHINE] || machine == ARM || machine == I386)
}

/// Returns whether further formats are registered in binfmt_misc. Only the kernel then knows which
/// files it can run.
fn has_other_formats() -> bool {
    // `register` and `status` always exist.
    std::fs::read_dir("/proc/sys/fs/binfmt_misc").is_ok_and(|entries| entries.count() > 2)
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
        && access(path, Access::EXEC_OK).is_ok()
}

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

/// Converts the error of spawning a [`Launcher::command`](Launcher::command).
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
        Some(Errno::TOOBIG) => {
            bad("argv", "arguments and environment exceed the kernel's limit; put some into a file")
        }
        Some(Errno::NOMEM | Errno::AGAIN | Errno::MFILE | Errno::NFILE) => {
            SpawnError::Exhausted { program, source }
        }
        _ => SpawnError::Exec { program, source },
    }
}

fn bad(field: &'static str, problem: impl Into<String>) -> SpawnError {
    SpawnError::BadField { field, problem: problem.into() }
}

fn in_path(searched: &Option<String>) -> String {
    searched.as_ref().map(|path| format!(" in PATH ({path})")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a launcher for a claim with this environment.
    fn launcher(root: &Path, env: &[(&str, &str)]) -> Launcher {
        let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let claim = crate::claim::Claim { env, ..crate::test_workspace::claim(Default::default()) };
        Launcher::new(root, tokio::sync::watch::channel(Some(Arc::new(claim))).1)
    }

    #[test]
    fn shell_that_cannot_open_a_terminal_is_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str, mode| {
            let file = dir.path().join(name);
            std::fs::write(&file, text).expect("a file");
            std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(mode))
                .expect("a mode");
            file.display().to_string()
        };
        let prompt = write("prompt", "#!/bin/sh\n", 0o755);
        let path = dir.path().to_str().expect("UTF-8");
        let shell = |shell: &str| launcher(dir.path(), &[("SHELL", shell), ("PATH", path)]).shell();
        assert_eq!((shell(&prompt), shell("prompt")), (prompt.clone(), prompt), "a name is searched in PATH");
        let usual = launcher(dir.path(), &[]).shell();
        for bad in [
            String::new(),
            "/no/such/shell".into(),
            "no-such-shell".into(),
            path.into(),
            write("data", "#!/bin/sh\n", 0o644),
            write("broken", "#!/no/such/interpreter\n", 0o755),
            write("nologin", "#!/bin/sh\n", 0o755),
        ] {
            assert_eq!(shell(&bad), usual, "{bad:?}");
        }
    }

    #[test]
    fn claim_environment_overrides_image_environment() {
        let image = [("PATH", "/image"), ("JAVA_HOME", "/jdk"), ("PODLING_AGENT_LISTEN", "unix:/run/a")];
        let image = image.map(|(k, v)| (k.to_owned(), v.to_owned()));
        let launcher =
            launcher(Path::new("/"), &[("PATH", "/claim"), ("LANG", "de_DE.UTF-8")]).inheriting(image);
        let forged = HashMap::from([("PODLING_WORKSPACE_ID".to_owned(), "another".to_owned())]);
        let env = launcher.environment(&forged).expect("claimed");
        let get = |name: &str| env.get(name).map(String::as_str);
        assert_eq!(
            (get("PATH"), get("LANG"), get("JAVA_HOME")),
            (Some("/claim"), Some("de_DE.UTF-8"), Some("/jdk"))
        );
        assert_eq!((get("USER"), get("PS1")), (None, None), "the launcher has no account");
        assert_eq!(get("PODLING_AGENT_LISTEN"), None, "variables for the agent are not passed on");
        assert!(get("SHELL").is_some());
        assert_eq!(
            get("PODLING_WORKSPACE_ID"),
            Some("abcdefghijkl"),
            "a caller cannot override the workspace id"
        );
    }
    #[test]
    fn user_without_name_is_in_environment() {
        let missing = crate::account::AccountFiles { passwd: "/absent".into(), group: "/absent".into() };
        let account = Account::ensure(&missing, Path::new("/workspace"), "/bin/bash");
        let variables = |env: &[(&str, &str)]| {
            let launcher = launcher(Path::new("/"), env).with_account(&account);
            let env = launcher.environment(&HashMap::new()).expect("claimed");
            ["USER", "LOGNAME", "PS1"].map(|name| env.get(name).cloned().unwrap_or_default())
        };
        let prompt = NAMELESS_PROMPT;
        assert_eq!(variables(&[("SHELL", "/bin/bash")]), ["podling", "podling", prompt]);
        assert_eq!(variables(&[("SHELL", "/bin/sh")]), ["podling", "podling", ""], "sh does not expand \\h");
        let own = [("SHELL", "/bin/bash"), ("USER", "ada"), ("PS1", "> ")];
        assert_eq!(variables(&own), ["ada", "ada", "> "]);
    }

    fn rejected(program: &Program) -> Option<(&'static str, String)> {
        match check_bounds(program) {
            Err(SpawnError::BadField { field, problem }) => Some((field, problem)),
            Err(error) => panic!("{error}"),
            Ok(()) => None,
        }
    }

    #[test]
    fn oversized_program_is_rejected_with_limit() {
        let argv = |words: Vec<String>| Program { argv: words, ..Program::default() };
        let env = |name: &str, bytes: usize| Program {
            env: [(name.to_owned(), "x".repeat(bytes))].into(),
            ..Program::default()
        };
        let many = |count: usize| argv(vec!["x".into(); count]);
        let cwd = |bytes: usize| Program { cwd: "x".repeat(bytes), ..Program::default() };
        let each = 1 + WORD_OVERHEAD_BYTES;
        let tables = [
            (
                argv(vec!["x".repeat(MAX_WORD_BYTES)]),
                argv(vec!["x".repeat(MAX_WORD_BYTES + 1)]),
                "argv",
                MAX_WORD_BYTES,
            ),
            (env("NAME", MAX_WORD_BYTES - 5), env("NAME", MAX_WORD_BYTES - 4), "env", MAX_WORD_BYTES),
            (many(MAX_PROGRAM_BYTES / each), many(MAX_PROGRAM_BYTES / each + 1), "argv", MAX_PROGRAM_BYTES),
            (cwd(MAX_CWD_BYTES), cwd(MAX_CWD_BYTES + 1), "cwd", MAX_CWD_BYTES),
        ];
        for (fits, too_long, field, limit) in tables {
            assert_eq!(rejected(&fits), None);
            let (rejected, problem) = rejected(&too_long).expect("too long");
            assert_eq!(rejected, field);
            assert!(problem.contains(&limit.to_string()), "{problem}");
        }
    }

    #[test]
    fn argv_is_truncated_at_character_boundary() {
        let short = vec!["sh".to_owned(), "-c".to_owned(), "é".repeat(1000)];
        assert_eq!(truncate_argv(&short), short);
        let long = truncate_argv(&["sh".to_owned(), "é".repeat(100_000), "more".to_owned()]);
        assert_eq!(long.len(), 2);
        assert!(long[1].starts_with('é') && long[1].ends_with('…') && long[1].len() <= MAX_DISPLAY_BYTES);
        assert!(truncate_argv(&vec![String::new(); 100_000]).len() <= MAX_DISPLAY_BYTES + 1);
    }

    #[test]
    fn interpreter_is_parsed_as_by_the_kernel() {
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
