//! The agent under test: the real program in a folder of its own.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use podling_agent::server::info::AgentInfo;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
};
use tokio::time::{Instant, sleep};

use crate::plane::{DEADLINE, socket};

pub(crate) const CREDENTIAL: &str = "abcdefghijkl.secret";
/// Runs a program as the first process of a PID namespace, and kills it should it be killed itself.
pub(crate) const UNSHARE: [&str; 4] = ["--pid", "--fork", "--mount-proc", "--kill-child"];

/// A running agent; ended, with all it started, when dropped.
pub(crate) struct Agent {
    pub(crate) dir: tempfile::TempDir,
    program: Command,
    child: Child,
    /// The agent itself, where the child is only around it.
    inner: Option<Pid>,
}

impl Agent {
    /// Starts one that trusts this CA and dials the socket in its folder.
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
        Self::start_by(program, listen, control, dir, ca, command)
    }

    /// Starts one as the first process of a PID namespace.
    pub(crate) async fn start_as_init(dir: tempfile::TempDir, ca: &str) -> Self {
        let listen = format!("unix:{}", dir.path().join("agent.sock").display());
        let control = format!("unix:{}", socket(dir.path()).display());
        let mut unshare = Command::new("unshare");
        unshare.args(UNSHARE).arg(env!("CARGO_BIN_EXE_podling-agent"));
        let mut agent = Self::start_by(unshare, &listen, &control, dir, ca, &[]);
        let around = agent.child.id();
        let children = format!("/proc/{around}/task/{around}/children");
        let inner = until("the first process", || {
            Pid::from_raw(std::fs::read_to_string(&children).ok()?.trim().parse().ok()?)
        })
        .await;
        agent.inner = Some(inner);
        agent
    }

    fn start_by(
        mut agent: Command,
        listen: &str,
        control: &str,
        dir: tempfile::TempDir,
        ca: &str,
        command: &[&str],
    ) -> Self {
        let path = |name: &str| dir.path().join(name);
        for folder in ["home", "state"] {
            std::fs::create_dir_all(path(folder)).expect("folder");
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
        Self { dir, program: agent, child, inner: None }
    }

    /// Starts it once more, where it was, after it has ended.
    pub(crate) fn start_again(&mut self) {
        std::fs::remove_file(self.path("state/agent.json")).expect("how its last run was reached");
        self.child = self.program.spawn().expect("starts");
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn pid(&self) -> Pid {
        self.inner.unwrap_or_else(|| Pid::from_child(&self.child))
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// What it says of itself, once it listens.
    pub(crate) async fn info(&self) -> AgentInfo {
        let path = self.path("state/agent.json");
        until("agent.json", || serde_json::from_slice(&std::fs::read(&path).ok()?).ok()).await
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("signalled");
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        until("the end of the agent", || self.child.try_wait().expect("waits")).await
    }

    pub(crate) fn exit_record(&self) -> podling_agent::init::ExitRecord {
        serde_json::from_slice(&std::fs::read(self.path("state/exit.json")).expect("exit.json"))
            .expect("JSON")
    }

    /// Resident memory in KiB.
    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("status");
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").parse().expect("number")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the agent ---\n{}", self.log());
        }
        // Asked twice it hurries; it is the agent that ends what it started, so killing it would leave that running.
        if matches!(self.child.try_wait(), Ok(None)) {
            let end = pidfd_open(self.pid(), PidfdFlags::empty()).expect("a descriptor");
            self.signal(Signal::TERM);
            self.signal(Signal::INT);
            let patience = Timespec { tv_sec: DEADLINE.as_secs() as i64, tv_nsec: 0 };
            let ended = poll(&mut [PollFd::new(&end, PollFlags::IN)], Some(&patience)).expect("waits");
            let _gone = (self.child.kill(), self.child.wait());
            assert!(ended > 0 || std::thread::panicking(), "the agent does not end\n{}", self.log());
        }
    }
}

/// Waits until something is there.
pub(crate) async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "no {what} within {DEADLINE:?}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Whether a process is there and has not ended.
pub(crate) fn is_running(pid: &str) -> bool {
    std::fs::read_to_string(Path::new("/proc").join(pid).join("stat"))
        .is_ok_and(|stat| !stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')))
}
