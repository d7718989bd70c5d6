//! Sends standard input and signals to a running command, and leaves to the next program what the
//! command does not read.
//!
//! Input has offsets, so that the agent drops input that is repeated after a broken connection.
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
    time::Duration,
};

use bytes::Bytes;
use podling_proto::agent::v1::WriteProcessRequest;
use rustix::pipe::{SpliceFlags, tee};
use tokio::{sync::watch, time::sleep};
use tonic::Status;

use super::follower::{StartedProcess, has_ended};
use crate::{
    backoff::{RetryBackoff, is_retryable},
    client::WorkspaceClient,
    failure::CommandFailure,
    notice,
    signal::{TerminationSignals, exit_code},
    stdio::{AsyncStdio, READ_BYTES},
};

/// How long a signal waits for the start of the command. After that, the client exits without it.
const START_TIMEOUT: Duration = Duration::from_secs(2);

/// Waits until the command has started. Waits forever if the follower is dropped before that.
async fn wait_until_started(started: &mut watch::Receiver<Option<StartedProcess>>) -> StartedProcess {
    match started.wait_for(Option::is_some).await.map(|started| started.clone()) {
        Ok(Some(started)) => started,
        // The follower was dropped, so this process is about to exit.
        _ => std::future::pending().await,
    }
}

/// Forwards standard input to its end and then waits forever, because the follower reports the
/// exit. Returns only if the agent rejects input, because the running command would otherwise wait
/// for it forever.
pub async fn forward_stdin(
    workspace_client: WorkspaceClient,
    mut started: watch::Receiver<Option<StartedProcess>>,
    stdin: &mut LocalStdin,
) -> CommandFailure {
    // Nothing is read before the command runs, so that a failed start takes no input.
    let StartedProcess { process_id, epoch } = wait_until_started(&mut started).await;
    let (mut offset, mut buffer) = (0, vec![0; READ_BYTES]);
    loop {
        let read = match stdin.take(offset) {
            Ok(()) => stdin.read(&mut buffer).await,
            Err(error) => Err(error),
        };
        let count = read.unwrap_or_else(|error| {
            notice!("podling: cannot read standard input: {error}");
            // The command must see the end of its input.
            0
        });
        let request = WriteProcessRequest {
            process_id: process_id.clone(),
            epoch,
            offset,
            data: Bytes::copy_from_slice(&buffer[..count]),
            end: count == 0,
            until_read: count > 0 && stdin.is_lent(),
        };
        match write(&workspace_client, request).await {
            Ok(true) if count > 0 => offset += count as u64,
            Ok(_) => return std::future::pending().await,
            Err(status) => {
                notice!("podling: cannot forward standard input; the command may still run");
                return status.into();
            }
        }
    }
}

/// Sends one chunk, and reconnects as needed. Returns whether the command accepts more input.
async fn write(workspace_client: &WorkspaceClient, request: WriteProcessRequest) -> Result<bool, Status> {
    let mut backoff = RetryBackoff::default();
    loop {
        match workspace_client.processes().write(request.clone()).await {
            Ok(answer) => return Ok(!answer.into_inner().closed),
            Err(status) if is_retryable(&status) => sleep(backoff.next_delay()).await,
            Err(status) if has_ended(&status) => return Ok(false),
            Err(status) => return Err(status),
        }
    }
}

/// Forwards signals to the command. Returns only if a signal cannot be forwarded, with the exit
/// code for that signal.
pub async fn forward_signals(
    workspace_client: WorkspaceClient,
    mut started: watch::Receiver<Option<StartedProcess>>,
    mut signals: TerminationSignals,
) -> u8 {
    loop {
        let name = signals.next().await;
        // The command may already run although its start was not reported yet. Exiting at once
        // would leave it running without the signal.
        let process = tokio::select! {
            process = wait_until_started(&mut started) => process,
            // No start was reported in time, or the user repeats the signal.
            () = sleep(START_TIMEOUT) => return exit_code(name),
            again = signals.next() => return exit_code(again),
        };
        if !process.signal(&workspace_client, name).await {
            notice!("podling: cannot reach the command; it may still run");
            return exit_code(name);
        }
    }
}

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
        Ok(Self { stdio: AsyncStdio::reading(io::stdin())?, file, kind })
    }

    /// Returns whether the next bytes can be read only after the command has read these ones.
    fn is_lent(&self) -> bool {
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
