//! Reads and writes standard input and output without blocking the runtime, which must keep the
//! connection alive. Input is never read ahead.
//!
//! The parent shell shares the descriptors, so they stay in blocking mode. Each call therefore
//! polls first, and a write is no larger than a ready pipe accepts at once.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use tokio::io::{Interest, unix::AsyncFd};

/// Size of a write in bytes. A pipe that polls as writable accepts a page without blocking.
const WRITE_BYTES: usize = 4096;
/// Size of a read in bytes.
pub const READ_BYTES: usize = 64 * 1024;

/// Standard input, output or error.
#[derive(Debug)]
pub struct AsyncStdio(StdioDescriptor);

#[derive(Debug)]
enum StdioDescriptor {
    /// Terminal, pipe or socket.
    Pollable(AsyncFd<OwnedFd>),
    /// Regular file or /dev/null. Always ready.
    File(OwnedFd),
}

impl AsyncStdio {
    /// Reads standard input, or an open pipe or device.
    pub fn reading(fd: impl AsFd) -> io::Result<Self> {
        Self::new(fd.as_fd(), Interest::READABLE)
    }

    /// Writes to standard output or error, or to an open pipe or device.
    pub fn writing(fd: impl AsFd) -> io::Result<Self> {
        Self::new(fd.as_fd(), Interest::WRITABLE)
    }

    fn new(fd: BorrowedFd<'_>, interest: Interest) -> io::Result<Self> {
        // Registering needs a descriptor of its own: two of the three are often the same terminal.
        #[expect(
            deprecated,
            reason = "the replacement is unsafe; an OwnedFd meets its requirement: not closed early"
        )]
        let ready = AsyncFd::with_interest(fd.try_clone_to_owned()?, interest);
        match ready {
            Ok(ready) => Ok(Self(StdioDescriptor::Pollable(ready))),
            // epoll rejects descriptors that are always ready.
            Err(error) if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) => {
                Ok(Self(StdioDescriptor::File(fd.try_clone_to_owned()?)))
            }
            Err(error) => Err(error),
        }
    }

    /// Waits until bytes are available and reads once. Returns 0 at the end of the input.
    /// Cancel-safe: if dropped, nothing was read.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.when_readable(|fd| read(fd, buffer)).await
    }

    /// Waits until bytes are available or the input ends, and calls `read` once. Cancel-safe: if
    /// dropped, `read` was not called.
    pub async fn when_readable<T>(&self, read: impl FnMut(&OwnedFd) -> io::Result<T>) -> io::Result<T> {
        self.when_ready(Interest::READABLE, PollFlags::IN, read).await
    }

    async fn when_ready<T>(
        &self,
        interest: Interest,
        wanted: PollFlags,
        mut action: impl FnMut(&OwnedFd) -> io::Result<T>,
    ) -> io::Result<T> {
        match &self.0 {
            StdioDescriptor::File(fd) => action(fd),
            StdioDescriptor::Pollable(ready) => {
                let action = |fd: &OwnedFd| is_ready(fd, wanted).and_then(|()| action(fd));
                ready.async_io(interest, action).await
            }
        }
    }

    /// Returns whether a read would not block.
    pub fn has_input(&self) -> io::Result<bool> {
        let fd = match &self.0 {
            StdioDescriptor::File(_) => return Ok(true),
            StdioDescriptor::Pollable(ready) => ready.get_ref(),
        };
        match is_ready(fd, PollFlags::IN) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            ready => ready.map(|()| true),
        }
    }

    /// Writes all data. Not cancel-safe: if dropped, a prefix may have been written.
    pub async fn write_all(&self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let written = self.write(data).await?;
            data = &data[written..];
        }
        Ok(())
    }

    /// Waits until writable and writes once. Cancel-safe: if dropped, nothing was written.
    pub async fn write(&self, data: &[u8]) -> io::Result<usize> {
        let data = &data[..data.len().min(WRITE_BYTES)];
        self.when_ready(Interest::WRITABLE, PollFlags::OUT, |fd| write(fd, data)).await
    }
}

fn is_ready(fd: &OwnedFd, wanted: PollFlags) -> io::Result<()> {
    let mut fds = [PollFd::new(fd, wanted)];
    match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
        Ok(0) => Err(io::ErrorKind::WouldBlock.into()),
        // Errors and hang-ups are reported by the call itself.
        Ok(_) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn read(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(rustix::io::retry_on_intr(|| rustix::io::read(fd, &mut *buffer))?)
}

fn write(fd: &OwnedFd, data: &[u8]) -> io::Result<usize> {
    Ok(rustix::io::retry_on_intr(|| rustix::io::write(fd, data))?)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write as _};

    use super::*;

    #[tokio::test]
    async fn pipe_with_slow_reader_delivers_every_byte() {
        let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
        let reading = AsyncStdio::new(reader.as_fd(), Interest::READABLE).expect("reader");
        let writing = AsyncStdio::new(writer.as_fd(), Interest::WRITABLE).expect("writer");
        drop((reader, writer));
        // Four times the capacity of a pipe.
        let sent: Vec<u8> = (0..256 * 1024_u32).map(|i| (i % 251) as u8).collect();
        let expected = sent.clone();
        let write = async move {
            writing.write_all(&sent).await.expect("written");
            drop(writing);
        };
        let read = async {
            let mut got = Vec::new();
            let mut buffer = vec![0; 1000];
            loop {
                match reading.read(&mut buffer).await.expect("read") {
                    0 => break got,
                    n => got.extend_from_slice(&buffer[..n]),
                }
            }
        };
        let ((), got) = tokio::join!(write, read);
        assert!(got == expected, "every byte once and in order");
    }

    #[tokio::test]
    async fn regular_file_is_read_without_polling() {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(b"hello").expect("written");
        rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0)).expect("rewound");
        let stdio = AsyncStdio::new(file.as_fd(), Interest::READABLE).expect("registered");
        let mut buffer = [0; 16];
        assert_eq!(stdio.read(&mut buffer).await.expect("read"), 5);
        assert_eq!(stdio.read(&mut buffer).await.expect("read"), 0);
        let null = AsyncStdio::new(File::open("/dev/null").expect("null").as_fd(), Interest::READABLE)
            .expect("null");
        assert_eq!(null.read(&mut buffer).await.expect("read"), 0);
    }

    #[tokio::test]
    async fn write_to_closed_pipe_returns_broken_pipe() {
        let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
        let writing = AsyncStdio::new(writer.as_fd(), Interest::WRITABLE).expect("writer");
        drop(reader);
        let error = writing.write_all(b"x").await.expect_err("closed pipe");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
