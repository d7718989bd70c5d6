//! Copies files from a workspace to this machine.

use std::{
    fs::{File as StdFile, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    time::SystemTime,
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use indicatif::ProgressBar;
use podling_proto::agent::v1::{Entry, ReadFileRequest, ReadFileResponse};
use tokio::{
    fs,
    io::{AsyncWriteExt as _, BufWriter},
    time::sleep,
};
use tonic::{Status, Streaming};

use super::{
    CONCURRENT_FILES, MAX_ATTEMPTS,
    endpoint::RemotePath,
    plan::{CopyFile, CopyPlan},
};
use crate::{
    backoff::{RetryBackoff, is_retryable},
    client::WorkspaceClient,
    failure::CommandFailure,
    partial_file::PartialFile,
    stdio::AsyncStdio,
};

/// Creates the directories of a plan and downloads its files.
pub async fn download(
    workspace_client: &WorkspaceClient,
    plan: CopyPlan<RemotePath, PathBuf>,
    bar: &ProgressBar,
) -> Result<(), CommandFailure> {
    for directory in &plan.directories {
        let create_error =
            || CommandFailure::io(format!("cannot create the directory {}", directory.display()));
        fs::create_dir_all(directory).await.map_err(create_error())?;
    }
    let copies =
        stream::iter(plan.files).map(|file| async move { download_file(workspace_client, &file, bar).await });
    copies.buffer_unordered(CONCURRENT_FILES).try_collect().await
}

/// Writes a file of the workspace to standard output. Returns the number of bytes.
pub async fn download_to_stdout(
    workspace_client: &WorkspaceClient,
    from: &RemotePath,
    bar: &ProgressBar,
) -> Result<u64, CommandFailure> {
    let stdout = AsyncStdio::stdout().map_err(CommandFailure::io("cannot write to standard output"))?;
    let mut reader = RemoteFileReader::new(workspace_client, from);
    while let Some(data) = reader.next().await? {
        match stdout.write_all(&data).await {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => break,
            result => result.map_err(CommandFailure::io("cannot write to standard output"))?,
        }
        bar.inc(data.len() as u64);
    }
    Ok(reader.offset)
}

async fn download_file(
    workspace_client: &WorkspaceClient,
    file: &CopyFile<RemotePath, PathBuf>,
    bar: &ProgressBar,
) -> Result<(), CommandFailure> {
    bar.set_message(file.from.show());
    let partial_file = PartialFile::beside(&file.to);
    let write_error = || CommandFailure::io(format!("cannot write {}", file.to.display()));
    let options = StdFile::options().write(true).create_new(true).clone();
    let created = fs::OpenOptions::from(options).open(partial_file.path()).await.map_err(write_error())?;
    let mut local = BufWriter::new(created);
    let mut reader = RemoteFileReader::new(workspace_client, &file.from);
    while let Some(data) = reader.next().await? {
        local.write_all(&data).await.map_err(write_error())?;
        bar.inc(data.len() as u64);
    }
    local.flush().await.map_err(write_error())?;
    let local = local.into_inner().into_std().await;
    // The mask drops the setuid, setgid and sticky bits.
    local.set_permissions(Permissions::from_mode(file.mode & 0o777)).map_err(write_error())?;
    if let Some(modified) = file.modified {
        local.set_modified(modified).map_err(write_error())?;
    }
    fs::rename(partial_file.path(), &file.to).await.map_err(write_error())
}

/// Reads a file of the workspace across broken connections.
struct RemoteFileReader<'a> {
    workspace_client: &'a WorkspaceClient,
    path: &'a RemotePath,
    offset: u64,
    first: Option<FileVersion>,
    stream: Option<Streaming<ReadFileResponse>>,
    backoff: RetryBackoff,
    tries: u32,
}

/// Size and modification time. If both are equal, the content counts as unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileVersion {
    size: u64,
    modified: Option<SystemTime>,
}

impl<'a> RemoteFileReader<'a> {
    fn new(workspace_client: &'a WorkspaceClient, path: &'a RemotePath) -> Self {
        Self {
            workspace_client,
            path,
            offset: 0,
            first: None,
            stream: None,
            backoff: RetryBackoff::default(),
            tries: 0,
        }
    }

    /// Returns the next chunk, or `None` at the end of a complete file.
    async fn next(&mut self) -> Result<Option<bytes::Bytes>, CommandFailure> {
        loop {
            match self.message().await {
                Ok(Some(message)) => {
                    self.check(message.stat)?;
                    (self.tries, self.backoff) = (0, RetryBackoff::default());
                    self.offset += message.data.len() as u64;
                    if !message.data.is_empty() {
                        return Ok(Some(message.data));
                    }
                }
                Ok(None) if self.first.is_some_and(|first| self.offset < first.size) => {
                    return Err(self.changed());
                }
                Ok(None) => return Ok(None),
                Err(status) if is_retryable(&status) && self.tries < MAX_ATTEMPTS => {
                    self.stream = None;
                    self.tries += 1;
                    sleep(self.backoff.next_delay()).await;
                }
                Err(status) => return Err(status.into()),
            }
        }
    }

    async fn message(&mut self) -> Result<Option<ReadFileResponse>, Status> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let request =
                    ReadFileRequest { path: Some(self.path.wire()), offset: self.offset, length: 0 };
                self.stream.insert(self.workspace_client.files().read(request).await?.into_inner())
            }
        };
        stream.message().await
    }

    /// Fails if a resumed stream reads another version of the file.
    fn check(&mut self, stat: Option<Entry>) -> Result<(), CommandFailure> {
        let Some(stat) = stat else { return Ok(()) };
        let modified = stat.modified.and_then(|at| SystemTime::try_from(at).ok());
        let version = FileVersion { size: stat.size, modified };
        match self.first.replace(version) {
            Some(first) if first != version && self.offset > 0 => Err(self.changed()),
            _ => Ok(()),
        }
    }

    fn changed(&self) -> CommandFailure {
        CommandFailure::Other(format!(
            "cannot copy {}: it changed while it was read; try again",
            self.path.show()
        ))
    }
}
