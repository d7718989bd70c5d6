//! Prepares programs for spawning: finds them, checks them, and builds their environment.
//!
//! Terminals and processes share this code, so that they report the same errors. All checks happen
//! before the fork. Errors that only `exec` detects are reported by their errno.

mod bounds;
mod error;
mod find;

use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use rustix::fs::{Access, access};

use self::find::{find, is_executable, runnable};
pub use self::{
    bounds::truncate_argv,
    error::{SpawnError, spawn_failed},
};
use crate::{
    account::{Account, AccountSource},
    claim::ClaimReceiver,
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

    /// Checks a program, and returns a command with its complete environment. The program is
    /// executable and the working directory accessible, as far as can be checked before `exec`.
    pub fn command(&self, program: &Program) -> Result<Command, SpawnError> {
        bounds::check(program)?;
        let env = self.environment(&program.env)?;
        let (name, args) =
            program.argv.split_first().filter(|(name, _)| !name.is_empty()).ok_or_else(|| {
                SpawnError::BadField { field: "argv", problem: "must contain at least the program".into() }
            })?;
        if program.argv.iter().any(|a| a.contains('\0')) {
            return Err(SpawnError::BadField {
                field: "argv",
                problem: "must not contain a NUL byte".into(),
            });
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
            let opens = !NO_LOGIN.contains(&name) && is_executable(&path) && runnable(shell, &path).is_ok();
            opens.then(|| path.to_str().map(str::to_owned))?
        });
        let known = ["/bin/bash", "/usr/bin/bash"].into_iter().find(|s| is_executable(Path::new(s)));
        named.unwrap_or_else(|| known.unwrap_or("/bin/sh").to_owned())
    }

    fn environment(&self, added: &HashMap<String, String>) -> Result<BTreeMap<String, String>, SpawnError> {
        let claim = self.claims.borrow().clone().ok_or(SpawnError::Unclaimed)?;
        if let Some((key, _)) =
            added.iter().find(|(k, v)| k.is_empty() || k.contains(['=', '\0']) || v.contains('\0'))
        {
            let problem = format!("{key:?} is not a valid variable name, or its value contains a NUL byte");
            return Err(SpawnError::BadField { field: "env", problem });
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
            return Err(SpawnError::BadField { field: "cwd", problem: "must not contain a NUL byte".into() });
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a launcher for a claim with this environment.
    fn launcher(root: &Path, env: &[(&str, &str)]) -> Launcher {
        let claim = crate::claim::Claim {
            workspace_id: "abcdefghijkl".into(),
            workspace_name: "demo".into(),
            epoch: 1,
            policy: Default::default(),
            env: env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            command: Vec::new(),
            maintenance: false,
            token_keys: Default::default(),
        };
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
}
