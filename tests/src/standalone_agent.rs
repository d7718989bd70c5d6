//! A lone agent: `podling-agent` as a container would start it, without a Podling around it.

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

/// How long it may take to end.
const END: Duration = Duration::from_secs(60);

/// A running agent; ended, with all it started, when dropped.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    folder: PathBuf,
    _folder: tempfile::TempDir,
}

impl Agent {
    /// Starts an agent that dials this control plane, which must show a certificate of this authority.
    pub fn start(control: SocketAddr, ca_pem: &str, credential: &str) -> Self {
        let temp = tempfile::Builder::new().prefix("podling-agent-").tempdir().expect("a folder");
        let folder = temp.path().to_owned();
        let path = |name: &str| folder.join(name);
        for name in ["root", "state"] {
            fs::create_dir(path(name)).expect("a folder");
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
        Self { child, folder, _folder: temp }
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("agent.sock")
    }

    /// The workspace's root.
    pub fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.folder
    }

    /// What it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- what the agent wrote ---\n{}", self.log());
        }
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let gone = wait_blocking(END, || self.child.try_wait().ok().flatten().is_some());
        let left = running_processes::in_dir(&self.folder);
        running_processes::kill_all(&left);
        let _ = (self.child.kill(), self.child.wait());
        if !thread::panicking() {
            assert!(
                gone && left.is_empty(),
                "left running after the agent was told to end: {left:#?}\n{}",
                self.log()
            );
        }
    }
}
