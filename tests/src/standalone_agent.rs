//! Starts `podling-agent` as a container does, without a real control plane.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{program::program, running_processes, wait::wait_blocking};

/// Time limit for the exit of the agent after SIGTERM.
const EXIT_TIMEOUT: Duration = Duration::from_secs(60);

/// A running agent. Dropping it ends the agent and asserts that none of its processes is left.
#[derive(Debug)]
pub struct StandaloneAgent {
    child: Child,
    dir: PathBuf,
    _dir: tempfile::TempDir,
}

impl StandaloneAgent {
    /// Starts an agent that connects to the control plane at `control`. The agent trusts only
    /// certificates that the authority `ca_pem` signed.
    pub fn start(control: SocketAddr, ca_pem: &str, credential: &str) -> Self {
        let temp = tempfile::Builder::new().prefix("podling-agent-").tempdir().expect("a directory");
        let dir = temp.path().to_owned();
        let path = |name: &str| dir.join(name);
        for name in ["root", "state"] {
            fs::create_dir(path(name)).expect("a directory");
        }
        fs::write(path("ca.pem"), ca_pem).expect("a file");
        fs::write(path("credential"), credential).expect("a file");
        let mut command = Command::new(program("podling-agent"));
        command.arg("--listen").arg(format!("unix:{}", path("agent.sock").display()));
        command.arg("--control").arg(format!("https://{control}"));
        command.arg("--control-ca").arg(path("ca.pem")).arg("--credential-file").arg(path("credential"));
        command.arg("--root").arg(path("root")).arg("--state").arg(path("state"));
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", path("root"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(path("log")).expect("a file"));
        let child = command.spawn().expect("podling-agent starts");
        Self { child, dir, _dir: temp }
    }

    pub fn socket_path(&self) -> PathBuf {
        self.dir.join("agent.sock")
    }

    pub fn root_dir(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// Returns the temporary directory of the agent's files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the output of the agent on stderr so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

impl Drop for StandaloneAgent {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- agent log ---\n{}", self.log());
        }
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let exited = wait_blocking(EXIT_TIMEOUT, || self.child.try_wait().ok().flatten().is_some());
        let left = running_processes::in_dir(&self.dir);
        running_processes::kill_all(&left);
        let _ = (self.child.kill(), self.child.wait());
        if !thread::panicking() {
            assert!(
                exited && left.is_empty(),
                "processes survive SIGTERM to the agent: {left:#?}\n{}",
                self.log()
            );
        }
    }
}
