//! The peer for keystrokes: OpenSSH over loopback, with a server, keys and port of its own.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

/// Debian's place for it; it insists on being started by its full path.
const SSHD: &str = "/usr/sbin/sshd";

/// A server on a free port that lets in exactly one key.
pub(crate) struct Sshd {
    child: Child,
    folder: TempDir,
    port: u16,
}

/// A session with a terminal at the far end.
pub(crate) struct Session {
    child: Child,
    pub(crate) stdin: ChildStdin,
    pub(crate) stdout: ChildStdout,
}

impl Sshd {
    pub(crate) fn start() -> Result<Self> {
        if !Path::new(SSHD).exists() {
            bail!("{SSHD} is missing: apt-get install openssh-server");
        }
        // sshd refuses keys below a folder that others may write to, so this is not made below /tmp's mode.
        let folder = TempDir::new()?;
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700))?;
        for key in ["host", "user"] {
            run(Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(folder.path().join(key)))?;
        }
        fs::copy(folder.path().join("user.pub"), folder.path().join("authorized"))?;
        fs::create_dir_all("/run/sshd").context("/run/sshd")?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let option = |name: &str, file: &str| format!("{name}={}", folder.path().join(file).display());
        let child = Command::new(SSHD)
            .args(["-D", "-e", "-f", "/dev/null", "-o", &format!("Port={port}")])
            .args(["-o", "ListenAddress=127.0.0.1", "-o", "StrictModes=no", "-o", "PidFile=none"])
            .args(["-o", "PermitRootLogin=yes", "-o", "PasswordAuthentication=no"])
            .args(["-o", &option("HostKey", "host"), "-o", &option("AuthorizedKeysFile", "authorized")])
            .stderr(Stdio::null())
            .spawn()?;
        let server = Self { child, folder, port };
        while server.command("true").stderr(Stdio::null()).status().is_ok_and(|s| !s.success()) {
            std::thread::yield_now();
        }
        Ok(server)
    }

    /// Runs a script with a terminal; returns when it has printed `ready`.
    pub(crate) fn session(&self, script: &str) -> Result<Session> {
        let mut child = self.command(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take().context("stdin")?;
        let mut stdout = child.stdout.take().context("stdout")?;
        crate::raw_pty::until_ready(&mut stdout)?;
        Ok(Session { child, stdin, stdout })
    }

    /// `OpenSSH_9.2p1 Debian…`
    pub(crate) fn version() -> Result<String> {
        let output = Command::new("ssh").arg("-V").output()?;
        let line = BufReader::new(output.stderr.as_slice()).lines().next().context("ssh -V")??;
        Ok(line.split(',').next().unwrap_or_default().to_owned())
    }

    fn command(&self, script: &str) -> Command {
        let mut command = Command::new("ssh");
        command.args(["-tt", "-F", "/dev/null", "-p", &self.port.to_string(), "-i"]);
        command.arg(self.folder.path().join("user")).args(["-o", "StrictHostKeyChecking=no"]);
        command.args(["-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "127.0.0.1", script]);
        command
    }
}

impl Read for Session {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.stdout.read(buffer)
    }
}

impl Write for Session {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.stdin.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.stdin.flush()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status()?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(())
}
