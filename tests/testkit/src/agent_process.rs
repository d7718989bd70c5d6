//! The agent under test as a process: the real program in a temporary directory, claimed by a fake
//! control plane.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use podling_proto::{
    control::v1::{Claim, control_message::Message},
    token::SigningKey,
};
use rustix::process::Signal;
use serde::{Deserialize, de::DeserializeOwned};
use tempfile::TempDir;

use crate::{
    agent_client,
    client::Client,
    control_plane::{AgentSession, CERTIFICATE_NAME, FakeControlPlane, claim, key},
    machine::program,
    net::DialAddress,
    processes,
    tls::{CertificateAuthority, Validity},
    wait::wait_for,
};

/// Credential that the agent sends. Tests search for `wombats` in what an impostor receives.
pub const CREDENTIAL: &str = "abcdefghijkl.wombats-dig-at-night";
/// Arguments of `unshare` for a program that is PID 1 of a new PID namespace. The program is killed
/// when `unshare` is killed.
pub const UNSHARE: [&str; 4] = ["--pid", "--fork", "--mount-proc", "--kill-child"];
/// Time limit for the exit of the agent after two signals.
const EXIT_TIMEOUT: Duration = Duration::from_secs(60);

/// A running agent. Dropping it ends the agent and asserts that none of its processes is left.
#[derive(Debug)]
pub struct AgentProcess {
    /// Directory of the sockets and of the agent's files: `home`, `state`, `log`.
    pub dir: TempDir,
    program: Command,
    child: Child,
    /// Pid of the agent where `child` is `unshare`.
    init_pid: Option<u32>,
}

/// Content of `agent.json`, with which the agent tells other processes about itself.
#[derive(Debug, Clone, Deserialize)]
pub struct AgentInfo {
    pub start_ticks: u64,
    pub boot_id: String,
    /// Listening address, as `unix:PATH` or `IP:PORT`.
    pub address: String,
    /// SHA-256 of the certificate in DER, lower-case hex.
    pub fingerprint: String,
}

/// Content of `exit.json`, which says why the agent ended.
#[derive(Debug, Deserialize)]
pub struct ExitRecord {
    pub reason: String,
    pub code: u8,
}

/// Returns the address in the agent's directory at which its control plane listens.
pub fn control_socket(dir: &TempDir) -> DialAddress {
    DialAddress::Unix(dir.path().join("control.sock"))
}

/// Starts an agent, claims it with a claim that `change` adapts, and waits for its first heartbeat.
/// The caller must hold the control plane and the session, because the agent dials again when they
/// are dropped.
pub async fn claimed(
    change: impl FnOnce(&mut Claim),
) -> (AgentProcess, SigningKey, FakeControlPlane, AgentSession) {
    let (agent, mut control_plane, _authority) = unclaimed(&[]).await;
    let (key, mut session) = (key(), control_plane.session().await);
    let mut claim = claim(&key);
    change(&mut claim);
    session.send(Message::Claim(claim)).await;
    session.heartbeat().await;
    (agent, key, control_plane, session)
}

/// Starts an agent with this command, and the control plane that it dials.
pub async fn unclaimed(command: &[&str]) -> (AgentProcess, FakeControlPlane, CertificateAuthority) {
    let authority = CertificateAuthority::new("Podling");
    let dir = tempfile::tempdir().expect("a directory");
    let control_plane = listen_in(&dir, &authority).await;
    let agent = AgentProcess::start_in(dir, &authority.pem, command);
    (agent, control_plane, authority)
}

/// Starts a control plane at [`control_socket`] with a certificate of this authority.
pub async fn listen_in(dir: &TempDir, authority: &CertificateAuthority) -> FakeControlPlane {
    let tls = authority.server(CERTIFICATE_NAME, Validity::Current);
    FakeControlPlane::start(&control_socket(dir), tls).await
}

impl AgentProcess {
    /// Starts an agent that trusts the authority `ca` and dials [`control_socket`] in its directory.
    pub fn start_in(dir: TempDir, ca: &str, command: &[&str]) -> Self {
        let agent = Command::new(program("podling-agent"));
        Self::spawn(agent, dir, None, ca, command)
    }

    /// Starts an agent that listens at `listen` and dials `control`.
    pub fn start_at(listen: &str, control: &str, ca: &str) -> Self {
        let agent = Command::new(program("podling-agent"));
        let dir = tempfile::tempdir().expect("a directory");
        Self::spawn(agent, dir, Some([listen, control]), ca, &[])
    }

    /// Starts an agent as PID 1 of a new PID namespace.
    pub async fn start_as_init(dir: TempDir, ca: &str) -> Self {
        let mut unshare = Command::new("unshare");
        unshare.args(UNSHARE).arg(program("podling-agent"));
        let mut agent = Self::spawn(unshare, dir, None, ca, &[]);
        let unshare = agent.child.id();
        let children = format!("/proc/{unshare}/task/{unshare}/children");
        let first = async || fs::read_to_string(&children).ok()?.trim().parse().ok();
        agent.init_pid = Some(wait_for("the first process", first).await);
        agent
    }

    fn spawn(
        mut agent: Command,
        dir: TempDir,
        addresses: Option<[&str; 2]>,
        ca: &str,
        command: &[&str],
    ) -> Self {
        let path = |name: &str| dir.path().join(name);
        for name in ["home", "state"] {
            fs::create_dir_all(path(name)).expect("a directory");
        }
        fs::write(path("ca.pem"), ca).expect("a file");
        fs::write(path("credential"), CREDENTIAL).expect("a file");
        let sockets = || ["agent.sock", "control.sock"].map(|name| format!("unix:{}", path(name).display()));
        let [listen, control] = addresses.map_or_else(sockets, |both| both.map(str::to_owned));
        agent.args(["--listen", &listen, "--control", &control]);
        for (flag, name) in [
            ("--control-ca", "ca.pem"),
            ("--credential-file", "credential"),
            ("--root", "home"),
            ("--state", "state"),
        ] {
            agent.arg(flag).arg(path(name));
        }
        agent.env("PODLING_AGENT_LOG", "debug,h2=info").stdin(Stdio::null());
        agent.stderr(File::create(path("log")).expect("a file"));
        if !command.is_empty() {
            agent.arg("--").args(command);
        }
        let child = agent.spawn().expect("podling-agent starts");
        Self { dir, program: agent, child, init_pid: None }
    }

    /// Starts the agent again in the same directory. The previous run must have ended.
    pub fn restart(&mut self) {
        fs::remove_file(self.path("state/agent.json")).expect("agent.json of the previous run");
        self.child = self.program.spawn().expect("podling-agent starts");
    }

    /// Returns the path of a file in the agent's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Returns the text of a file in the home directory. Empty if the file does not exist.
    pub fn home_text(&self, name: &str) -> String {
        fs::read_to_string(self.path("home").join(name)).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.init_pid.unwrap_or_else(|| self.child.id())
    }

    /// Returns the output of the agent on stderr so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Waits until the agent listens, and returns what it writes then.
    pub async fn info(&self) -> AgentInfo {
        wait_for("agent.json", async || self.state_file("agent.json")).await
    }

    /// Returns the record of the agent's end. Panics if it has not ended.
    pub fn exit_record(&self) -> ExitRecord {
        self.state_file("exit.json").expect("exit.json")
    }

    fn state_file<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_slice(&fs::read(self.path("state").join(name)).ok()?).ok()
    }

    /// Returns the address of the agent's socket.
    pub fn socket(&self) -> DialAddress {
        DialAddress::Unix(self.path("agent.sock"))
    }

    /// Returns a client without a token. All its calls use one connection.
    pub async fn client(&self) -> Client {
        agent_client::single_connection(self.socket(), &self.info().await.fingerprint)
    }

    pub fn signal(&self, signal: Signal) {
        processes::signal(self.pid(), signal);
    }

    /// Waits until the agent has exited.
    pub async fn wait_exit(&mut self) -> ExitStatus {
        wait_for("the agent's exit", async || self.child.try_wait().expect("a child")).await
    }

    /// Returns the resident memory (`VmRSS`) of the agent, in KiB.
    pub fn resident_kib(&self) -> u64 {
        processes::resident_kib(self.child.id())
    }
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- agent log ---\n{}", self.log());
        }
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        // A second signal skips the grace period. KILL would leave the agent's children running,
        // because only the agent ends them.
        self.signal(Signal::TERM);
        self.signal(Signal::INT);
        let exited = processes::wait_or_kill(&mut self.child, EXIT_TIMEOUT).is_some();
        let left = processes::in_dir(self.dir.path());
        processes::kill_all(&left);
        let log = self.log();
        assert!(
            std::thread::panicking() || (exited && left.is_empty()),
            "processes survive TERM and INT to the agent: {left:#?}\n{log}"
        );
    }
}
