//! Reads standard input for a remote command, and leaves to the next program what the command does
//! not read.
//!
//! Several commands of a shell script share one standard input, as in `while read line; do podling
//! run demo -- echo "$line"; done < lines`. A local command takes only what it reads. This client
//! cannot know in advance what the remote command will read. It therefore sets a file back to the
//! first byte that the command did not read. From a pipe it takes only bytes that the command
//! has read, and sends a copy of the others.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{FileType, SeekFrom, fstat, seek},
    io::Errno,
    pipe::{SpliceFlags, pipe, tee},
};

use crate::stdio::{AsyncStdio, READ_BYTES};

/// Standard input whose unread bytes stay available.
#[derive(Debug)]
pub struct LocalStdin {
    stdio: AsyncStdio,
    kind: StdinKind,
}

#[derive(Debug)]
enum StdinKind {
    /// A regular file, which is read.
    File {
        /// Offset in the file of the first byte that was sent.
        start: u64,
    },
    /// A pipe. Bytes are copied with tee(2), which does not take them from the pipe.
    Pipe {
        /// Pipe that receives the copy.
        copy: (OwnedFd, OwnedFd),
        /// Number of bytes that were taken from the pipe.
        taken: u64,
    },
    /// Terminal, socket or device. What is read cannot be given back.
    Stream,
}

impl LocalStdin {
    pub fn open() -> io::Result<Self> {
        let (stdio, stdin) = (AsyncStdio::stdin()?, io::stdin());
        let kind = match FileType::from_raw_mode(fstat(&stdin)?.st_mode) {
            FileType::RegularFile => StdinKind::File { start: seek(&stdin, SeekFrom::Current(0))? },
            FileType::Fifo => StdinKind::Pipe { copy: pipe()?, taken: 0 },
            _ => StdinKind::Stream,
        };
        Ok(Self { stdio, kind })
    }

    /// Returns whether the next bytes can be read only after the command has read these ones.
    pub fn is_lent(&self) -> bool {
        matches!(self.kind, StdinKind::Pipe { .. })
    }

    /// Waits for input. Returns the number of bytes in `buffer`, which is 0 at the end.
    pub async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.kind {
            StdinKind::Pipe { copy: (reader, writer), .. } => {
                let copied = self
                    .stdio
                    .when_readable(|stdin| {
                        let length = buffer.len().min(READ_BYTES);
                        Ok(rustix::io::retry_on_intr(|| tee(stdin, writer, length, SpliceFlags::NONBLOCK))?)
                    })
                    .await?;
                read_exact(reader, &mut buffer[..copied])?;
                Ok(copied)
            }
            StdinKind::File { .. } | StdinKind::Stream => self.stdio.read(buffer).await,
        }
    }

    /// Removes bytes of a pipe that the command has read. `read` is the number of bytes that it has
    /// read in total.
    pub fn take(&mut self, read: u64) -> io::Result<()> {
        let StdinKind::Pipe { taken, .. } = &mut self.kind else { return Ok(()) };
        let mut buffer = vec![0; READ_BYTES];
        // Another program that reads the same pipe may have taken the bytes.
        while *taken < read && self.stdio.has_input()? {
            let rest = usize::try_from(read - *taken).unwrap_or(READ_BYTES).min(READ_BYTES);
            match rustix::io::retry_on_intr(|| rustix::io::read(io::stdin().as_fd(), &mut buffer[..rest]))? {
                0 => break,
                count => *taken += count as u64,
            }
        }
        Ok(())
    }

    /// Leaves the bytes after the first `read` bytes to the next program.
    pub fn leave_unread(&mut self, read: u64) -> io::Result<()> {
        match &self.kind {
            StdinKind::File { start } => {
                seek(io::stdin(), SeekFrom::Start(start + read))?;
                Ok(())
            }
            StdinKind::Pipe { .. } => self.take(read),
            StdinKind::Stream => Ok(()),
        }
    }
}

fn read_exact(fd: &OwnedFd, mut buffer: &mut [u8]) -> io::Result<()> {
    while !buffer.is_empty() {
        match rustix::io::read(fd, &mut *buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => buffer = &mut buffer[count..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
