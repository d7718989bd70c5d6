//! Opens PTY pairs, starts programs on the slave, and reads and writes the master. The reactor
//! reports readiness, so no thread blocks.
//!
//! This is the only terminal module with `unsafe` code. It borrows raw descriptors, runs code
//! between fork and exec, and registers descriptors with the reactor.
#![allow(unsafe_code)]

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{fs::OpenOptionsExt, process::CommandExt},
    },
    process::{Command, Stdio},
};

use portable_pty::{PtySize, native_pty_system};
use rustix::{
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    io::Errno,
    process::{Pid, ioctl_tiocsctty, setsid},
    pty::OpenptFlags,
    termios::{InputModes, OptionalActions, Winsize, tcgetattr, tcgetpgrp, tcsetattr, tcsetwinsize},
};
use tokio::io::{Interest, unix::AsyncFd};

use super::types::{PtyOpenError, WindowSize};
use crate::{
    child::{Child, Children},
    util::ReadMode,
};

/// Size of the read buffer, in bytes. The kernel returns at most 4095 bytes per read.
const READ_BYTES: usize = 4096;

/// Master side of a PTY. Dropping it hangs up the terminal.
#[derive(Debug)]
pub(crate) struct Pty {
    master: AsyncFd<OwnedFd>,
}

/// Result of one read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PtyRead {
    /// Number of bytes read; 0 if a signal interrupted the read. More bytes may be available.
    Bytes(usize),
    WouldBlock,
    /// No process has the slave open, or the read failed.
    Closed,
}

/// PTY pair whose slave has no program yet.
#[derive(Debug)]
pub(crate) struct PtyPair {
    master: OwnedFd,
    slave: File,
}

impl PtyPair {
    /// Opens a pair with this window size.
    pub(crate) fn open(size: WindowSize) -> Result<Self, PtyOpenError> {
        let pixels = PtySize { rows: size.rows, cols: size.cols, pixel_width: 0, pixel_height: 0 };
        let pair = native_pty_system().openpty(pixels).map_err(|e| open_failure(&e.to_string()))?;
        let (Some(raw), Some(name)) = (pair.master.as_raw_fd(), pair.master.tty_name()) else {
            return Err(PtyOpenError::NoPty);
        };
        // SAFETY: `pair.master` owns the descriptor and lives until the end of this function. The
        // borrow ends with this statement, and the duplicate is an owned descriptor.
        let master =
            unsafe { BorrowedFd::borrow_raw(raw) }.try_clone_to_owned().map_err(classify_open_error)?;
        // The slave is opened by name because portable-pty does not expose it. NOCTTY keeps it from
        // becoming the controlling terminal of the agent.
        let slave = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlags::NOCTTY.bits() as i32)
            .open(name)
            .map_err(classify_open_error)?;
        configure(&master, &slave).map_err(|e| PtyOpenError::Io(e.into()))?;
        Ok(Self { master, slave })
    }

    /// Starts the program as a session leader with the slave as its controlling terminal. Closes
    /// the copies of the slave in the agent.
    pub(crate) fn spawn(self, mut command: Command, children: &Children) -> io::Result<(Pty, Child)> {
        command.stdin(Stdio::from(self.slave.try_clone()?));
        command.stdout(Stdio::from(self.slave.try_clone()?));
        command.stderr(Stdio::from(self.slave));
        // SAFETY: the closure makes two async-signal-safe system calls and does not allocate.
        // Descriptor 0 is the slave by then.
        unsafe {
            command.pre_exec(|| {
                setsid()?;
                ioctl_tiocsctty(BorrowedFd::borrow_raw(0))?;
                Ok(())
            });
        }
        // SAFETY: the `AsyncFd` owns the descriptor. Nothing else closes it, and the `AsyncFd`
        // deregisters it before closing it.
        let master = unsafe { AsyncFd::register(self.master) }.map_err(|e| e.into_parts().1)?;
        let child = children.spawn(&mut command)?;
        Ok((Pty { master }, child))
    }
}

impl Pty {
    /// Waits until the PTY may be readable. Cancel-safe.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        self.master.readable().await.map(|_guard| ())
    }

    /// Waits until the PTY may be writable. Cancel-safe.
    pub(crate) async fn writable(&self) -> io::Result<()> {
        self.master.writable().await.map(|_guard| ())
    }

    /// Reads once, and passes the bytes to `consume`.
    pub(crate) fn read(&self, mode: ReadMode, consume: impl FnOnce(&[u8])) -> PtyRead {
        let mut buffer = [0; READ_BYTES];
        let read = match mode {
            ReadMode::WhenReady => {
                self.master.try_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut buffer[..])?))
            }
            ReadMode::Final => {
                rustix::io::read(self.master.get_ref(), &mut buffer[..]).map_err(io::Error::from)
            }
        };
        match read {
            Ok(0) => PtyRead::Closed,
            Ok(n) => {
                consume(&buffer[..n]);
                PtyRead::Bytes(n)
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => PtyRead::WouldBlock,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => PtyRead::Bytes(0),
            // EIO: every process has closed the slave.
            Err(_) => PtyRead::Closed,
        }
    }

    /// Writes as much as the PTY accepts now. Fails with `WouldBlock` if the PTY is full.
    pub(crate) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.master.try_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, bytes)?))
    }

    /// Sets the window size. The kernel sends SIGWINCH to the foreground process group.
    pub(crate) fn resize(&self, size: WindowSize) -> io::Result<()> {
        let size = Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(tcsetwinsize(self.master.get_ref(), size)?)
    }

    /// Returns the foreground process group.
    pub(crate) fn foreground(&self) -> Option<Pid> {
        tcgetpgrp(self.master.get_ref()).ok()
    }
}

fn configure(master: &OwnedFd, slave: &File) -> rustix::io::Result<()> {
    // With IUTF8 the kernel's line editor deletes characters instead of bytes.
    let mut modes = tcgetattr(slave)?;
    modes.input_modes |= InputModes::IUTF8;
    tcsetattr(slave, OptionalActions::Now, &modes)?;
    fcntl_setfl(master.as_fd(), fcntl_getfl(master.as_fd())? | OFlags::NONBLOCK)
}

/// Determines why no PTY could be opened. portable-pty discards the errno, so this function tries
/// to open a PTY again.
fn open_failure(message: &str) -> PtyOpenError {
    match rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC) {
        Err(errno) => classify_open_error(errno.into()),
        Ok(_) => PtyOpenError::Io(io::Error::other(message.to_owned())),
    }
}

fn classify_open_error(error: io::Error) -> PtyOpenError {
    match Errno::from_io_error(&error) {
        Some(Errno::MFILE | Errno::NFILE) => PtyOpenError::NoFileDescriptors,
        // ENOSPC: the limit of devpts is reached. ENOENT, ENODEV: `/dev/ptmx` does not exist.
        Some(Errno::NOSPC | Errno::NOENT | Errno::NODEV | Errno::AGAIN) => PtyOpenError::NoPty,
        _ => PtyOpenError::Io(error),
    }
}
