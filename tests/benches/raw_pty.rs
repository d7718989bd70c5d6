//! The peer for terminals, a PTY that the benchmark itself opens and reads.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use podling_tests::processes::KilledOnDrop;
use rustix::{
    fs::{Mode, OFlags, open},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
};

/// A shell script on a PTY. Dropping it kills the shell.
pub(crate) struct RawPty {
    pub(crate) master: File,
    _child: KilledOnDrop,
}

impl RawPty {
    pub(crate) fn spawn(script: &str) -> Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, Vec::new())?;
        let slave: OwnedFd = open(&name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
        let child = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::from(slave.try_clone()?))
            .stdout(Stdio::from(slave.try_clone()?))
            .stderr(Stdio::from(slave))
            .spawn()
            .context("sh")?;
        Ok(Self { master: master.into(), _child: KilledOnDrop(child) })
    }

    /// Reads until all programs on the PTY have ended, and passes each read to `consume`.
    pub(crate) fn drain(&mut self, mut consume: impl FnMut(&[u8])) {
        let mut buffer = vec![0; 64 * 1024];
        // EIO means that no process has the PTY's other side open any more.
        while let Ok(n) = self.master.read(&mut buffer) {
            if n == 0 {
                return;
            }
            consume(&buffer[..n]);
        }
    }
}

impl Read for RawPty {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.master.read(buffer)
    }
}

impl Write for RawPty {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.master.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Reads until the program has printed the line `ready`.
pub(crate) fn until_ready(from: &mut impl Read) -> Result<()> {
    let (mut output, mut buffer) = (Vec::new(), [0; 256]);
    while !crate::attached::contains(&output, b"ready\r\n") && !output.ends_with(b"ready\n") {
        let n = from.read(&mut buffer)?;
        if n == 0 {
            bail!("the program ended before it printed ready: {}", String::from_utf8_lossy(&output));
        }
        output.extend_from_slice(&buffer[..n]);
    }
    Ok(())
}
