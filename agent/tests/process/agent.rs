//! The agent under test: the real program in a temporary directory.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use podling_agent::state_file::AgentInfoFile;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
};
use tokio::time::{Instant, sleep};

use crate::control_plane::{DEADLINE, socket};

pub(crate) const CREDENTIAL: &str = "abcdefghijkl.secret";
/// Arguments of `unshare` for a program that is PID 1 of a new PID namespace. The program is killed
/// when `unshare` is killed.
pub(crate) const UNSHARE: [&str; 4] = ["--pid", "--fork", "--mount-proc", "--kill-child"];

/// A running agent. Dropping it ends the agent and all processes that the agent started.
pub(crate) struct AgentProcess {
    pub(crate) dir: tempfile::TempDir,
    program: Command,
    child: Child,
    /// Pid of the agent where `child` is `unshare`.
    init_pid: Option<Pid>,
}

impl AgentProcess {
    /// Starts an agent that trusts `ca` and dials the control plane's socket in its directory.
    pub(crate) fn start(ca: &str) -> Self {
        Self::start_in(tempfile::tempdir().expect("dir"), ca, &[])
    }

    pub(crate) fn start_in(dir: tempfile::TempDir, ca: &str, command: &[&str]) -> Self {
        let listen = format!("unix:{}", dir.path().join("agent.sock").display());
        let control = format!("unix:{}", socket(dir.path()).display());
        Self::start_at(&listen, &control, dir, ca, command)
    }

    pub(crate) fn start_at(
        listen: &str,
        control: &str,
        dir: tempfile::TempDir,
        ca: &str,
        command: &[&str],
    ) -> Self {
        let program = Command::new(env!("CARGO_BIN_EXE_podling-agent"));
        Self::spawn_with(program, listen, control, dir, ca, command)
    }

    /// Starts an agent as PID 1 of a new PID namespace.
    pub(crate) async fn start_as_init(dir: tempfile::TempDir, ca: &str) -> Self {
        let listen = format!("unix:{}", dir.path().join("agent.sock").display());
        let control = format!("unix:{}", socket(dir.path()).display());
        let mut unshare = Command::new("unshare");
        unshare.args(UNSHARE).arg(env!("CARGO_BIN_EXE_podling-agent"));
        let mut agent = Self::spawn_with(unshare, &listen, &control, dir, ca, &[]);
        let unshare_pid = agent.child.id();
        let children = format!("/proc/{unshare_pid}/task/{unshare_pid}/children");
        let init_pid = wait_for("the first process", || {
            Pid::from_raw(std::fs::read_to_string(&children).ok()?.trim().parse().ok()?)
        })
        .await;
        agent.init_pid = Some(init_pid);
        agent
    }

    fn spawn_with(
        mut agent: Command,
        listen: &str,
        control: &str,
        dir: tempfile::TempDir,
        ca: &str,
        command: &[&str],
    ) -> Self {
        let path = |name: &str| dir.path().join(name);
        for name in ["home", "state"] {
            std::fs::create_dir_all(path(name)).expect("directory");
        }
        std::fs::write(path("ca.pem"), ca).expect("ca");
        std::fs::write(path("credential"), CREDENTIAL).expect("credential");
        agent
            .args(["--listen", listen, "--control", control])
            .arg("--control-ca")
            .arg(path("ca.pem"))
            .arg("--credential-file")
            .arg(path("credential"))
            .arg("--root")
            .arg(path("home"))
            .arg("--state")
            .arg(path("state"))
            .env("PODLING_AGENT_LOG", "debug,h2=info")
            .stdin(Stdio::null())
            .stderr(File::create(path("log")).expect("log"));
        if !command.is_empty() {
            agent.arg("--").args(command);
        }
        let child = agent.spawn().expect("starts");
        Self { dir, program: agent, child, init_pid: None }
    }

    /// Starts the agent again in the same directory. The previous run must have ended.
    pub(crate) fn restart(&mut self) {
        std::fs::remove_file(self.path("state/agent.json")).expect("agent.json of the previous run");
        self.child = self.program.spawn().expect("starts");
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn pid(&self) -> Pid {
        self.init_pid.unwrap_or_else(|| Pid::from_child(&self.child))
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Returns the content of `agent.json`, which the agent writes once it listens.
    pub(crate) async fn info(&self) -> AgentInfoFile {
        let path = self.path("state/agent.json");
        wait_for("agent.json", || serde_json::from_slice(&std::fs::read(&path).ok()?).ok()).await
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("signalled");
    }

    /// Waits until the agent has exited.
    pub(crate) async fn wait_exit(&mut self) -> ExitStatus {
        wait_for("the agent's exit", || self.child.try_wait().expect("waits")).await
    }

    pub(crate) fn exit_record(&self) -> podling_agent::state_file::ExitRecord {
        serde_json::from_slice(&std::fs::read(self.path("state/exit.json")).expect("exit.json"))
            .expect("JSON")
    }

    /// Returns the resident memory (`VmRSS`) of the agent, in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("status");
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").parse().expect("number")
    }
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- agent log ---\n{}", self.log());
        }
        // A second signal skips the grace period. KILL would leave the agent's children running,
        // because only the agent ends them.
        if matches!(self.child.try_wait(), Ok(None)) {
            let end = pidfd_open(self.pid(), PidfdFlags::empty()).expect("a descriptor");
            self.signal(Signal::TERM);
            self.signal(Signal::INT);
            let timeout = Timespec { tv_sec: DEADLINE.as_secs() as i64, tv_nsec: 0 };
            let ended = poll(&mut [PollFd::new(&end, PollFlags::IN)], Some(&timeout)).expect("waits");
            let _gone = (self.child.kill(), self.child.wait());
            assert!(
                ended > 0 || std::thread::panicking(),
                "the agent did not exit after TERM and INT\n{}",
                self.log()
            );
        }
    }
}

/// Polls `poll_value` every 10 ms until it returns a value. Panics after [`DEADLINE`].
pub(crate) async fn wait_for<T>(what: &str, mut poll_value: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = poll_value() {
            return found;
        }
        assert!(Instant::now() < deadline, "no {what} within {DEADLINE:?}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Returns whether the process exists and is not a zombie.
pub(crate) fn is_running(pid: &str) -> bool {
    std::fs::read_to_string(Path::new("/proc").join(pid).join("stat"))
        .is_ok_and(|stat| !stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')))
}
