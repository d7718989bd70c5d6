//! The peer for keystrokes, OpenSSH over loopback, with a server, keys and a port of its own.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context, Result, bail};
use podling_tests::processes::KilledOnDrop;
use tempfile::TempDir;

/// Path of sshd on Debian. sshd requires that it is started by an absolute path.
const SSHD: &str = "/usr/sbin/sshd";

/// A server on a free port that accepts exactly one key.
pub(crate) struct Sshd {
    _child: KilledOnDrop,
    directory: TempDir,
    port: u16,
}

/// An SSH session with a terminal.
pub(crate) struct SshSession {
    _child: KilledOnDrop,
    pub(crate) stdin: ChildStdin,
    pub(crate) stdout: ChildStdout,
}

impl Sshd {
    pub(crate) fn start() -> Result<Self> {
        if !Path::new(SSHD).exists() {
            bail!("{SSHD} is missing; run apt-get install openssh-server");
        }
        // sshd rejects keys in a directory to which other users may write.
        let directory = TempDir::new()?;
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700))?;
        for key in ["host", "user"] {
            run(Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(directory.path().join(key)))?;
        }
        fs::copy(directory.path().join("user.pub"), directory.path().join("authorized"))?;
        fs::create_dir_all("/run/sshd").context("/run/sshd")?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let option = |name: &str, file: &str| format!("{name}={}", directory.path().join(file).display());
        let child = Command::new(SSHD)
            .args(["-D", "-e", "-f", "/dev/null", "-o", &format!("Port={port}")])
            .args(["-o", "ListenAddress=127.0.0.1", "-o", "StrictModes=no", "-o", "PidFile=none"])
            .args(["-o", "PermitRootLogin=yes", "-o", "PasswordAuthentication=no"])
            .args(["-o", &option("HostKey", "host"), "-o", &option("AuthorizedKeysFile", "authorized")])
            .stderr(Stdio::null())
            .spawn()?;
        let server = Self { _child: KilledOnDrop(child), directory, port };
        while server.command("true").stderr(Stdio::null()).status().is_ok_and(|s| !s.success()) {
            std::thread::yield_now();
        }
        Ok(server)
    }

    /// Runs a script in a session with a terminal. Returns after the script has printed `ready`.
    pub(crate) fn session(&self, script: &str) -> Result<SshSession> {
        let mut child = self.command(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take().context("stdin")?;
        let mut stdout = child.stdout.take().context("stdout")?;
        crate::raw_pty::until_ready(&mut stdout)?;
        Ok(SshSession { _child: KilledOnDrop(child), stdin, stdout })
    }

    /// Returns the version of the client, such as `OpenSSH_9.2p1 Debian-2`.
    pub(crate) fn version() -> Result<String> {
        let output = Command::new("ssh").arg("-V").output()?;
        let line = BufReader::new(output.stderr.as_slice()).lines().next().context("ssh -V")??;
        Ok(line.split(',').next().unwrap_or_default().to_owned())
    }

    fn command(&self, script: &str) -> Command {
        let mut command = Command::new("ssh");
        command.args(["-tt", "-F", "/dev/null", "-p", &self.port.to_string(), "-i"]);
        command.arg(self.directory.path().join("user")).args(["-o", "StrictHostKeyChecking=no"]);
        command.args(["-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "127.0.0.1", script]);
        command
    }
}

impl Read for SshSession {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.stdout.read(buffer)
    }
}

impl Write for SshSession {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.stdin.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.stdin.flush()
    }
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status()?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(())
}
