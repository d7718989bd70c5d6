//! Reads standard input for a remote command, and leaves to the next program what the command does
//! not read.
//!
//! Several commands of a shell script share one standard input, as in `while read line; do podling
//! run demo -- echo "$line"; done < lines`. A local command takes only what it reads. This client
//! cannot know in advance what the remote command will read. It therefore sets a file back to the
//! first byte that the command did not read. From a pipe it takes only bytes that the command
//! has read, and sends a copy of the others.

use std::{
    fs::File,
    io::{self, PipeReader, PipeWriter, Read as _, Seek as _, SeekFrom},
    os::{fd::AsFd as _, unix::fs::FileTypeExt as _},
};

use rustix::pipe::{SpliceFlags, tee};

use crate::stdio::{AsyncStdio, READ_BYTES};

/// Standard input whose unread bytes stay available.
#[derive(Debug)]
pub struct LocalStdin {
    stdio: AsyncStdio,
    /// The same open file, which is never waited for.
    file: File,
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
        copy: (PipeReader, PipeWriter),
        /// Number of bytes that were taken from the pipe.
        taken: u64,
    },
    /// Terminal, socket or device. What is read cannot be given back.
    Stream,
}

impl LocalStdin {
    pub fn open() -> io::Result<Self> {
        let mut file = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let kind = match file.metadata()?.file_type() {
            kind if kind.is_file() => StdinKind::File { start: file.stream_position()? },
            kind if kind.is_fifo() => StdinKind::Pipe { copy: io::pipe()?, taken: 0 },
            _ => StdinKind::Stream,
        };
        Ok(Self { stdio: AsyncStdio::stdin()?, file, kind })
    }

    /// Returns whether the next bytes can be read only after the command has read these ones.
    pub fn is_lent(&self) -> bool {
        matches!(self.kind, StdinKind::Pipe { .. })
    }

    /// Waits for input. Returns the number of bytes in `buffer`, which is 0 at the end.
    pub async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.kind {
            StdinKind::Pipe { copy: (reader, writer), .. } => {
                let copied = self
                    .stdio
                    .when_readable(|stdin| {
                        let length = buffer.len().min(READ_BYTES);
                        Ok(rustix::io::retry_on_intr(|| tee(stdin, &*writer, length, SpliceFlags::NONBLOCK))?)
                    })
                    .await?;
                reader.read_exact(&mut buffer[..copied])?;
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
            match self.file.read(&mut buffer[..rest]) {
                Ok(0) => break,
                Ok(count) => *taken += count as u64,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Leaves the bytes after the first `read` bytes to the next program.
    pub fn leave_unread(&mut self, read: u64) -> io::Result<()> {
        match &self.kind {
            StdinKind::File { start } => self.file.seek(SeekFrom::Start(start + read)).map(|_| ()),
            StdinKind::Pipe { .. } => self.take(read),
            StdinKind::Stream => Ok(()),
        }
    }
}
