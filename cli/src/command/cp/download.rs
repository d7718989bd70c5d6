//! Copies files from a workspace to this machine.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use indicatif::ProgressBar;
use podling_proto::agent::v1::{Entry, ReadFileRequest, ReadFileResponse};
use tokio::{
    fs::File,
    io::{AsyncWriteExt as _, BufWriter},
    time::sleep,
};
use tonic::{Status, Streaming};

use super::{
    copy::{CopyDirection, CopyTally, MAX_ATTEMPTS, OWNER_ACCESS, copy_all},
    endpoint::RemotePath,
    plan::{CopyDirectory, CopyFile, CopyPlan},
    skipped::{CopyFailure, FailureScope, RemoteRole, SkipReason},
};
use crate::{
    backoff::{RetryBackoff, is_retryable},
    client::WorkspaceClient,
    failure::CommandFailure,
    local_file::{LocalStream, PartialFile},
    output,
};

/// Permission bits that are copied. The setuid, setgid and sticky bits of a workspace's files have
/// no business on this machine.
const MODE_MASK: u32 = 0o777;
/// Permission bits of a file until it is complete.
const PARTIAL_MODE: u32 = 0o600;

/// Creates the directories of a plan and downloads its files. A path that cannot be copied is added
/// to the skipped paths of `tally`. Returns a failure that concerns the whole copy.
pub async fn download(
    workspace_client: &WorkspaceClient,
    plan: CopyPlan<RemotePath, PathBuf>,
    tally: &mut CopyTally,
) -> Result<(), CommandFailure> {
    let bar = &output::bytes_bar(Some(plan.bytes()));
    copy_all(&Download { workspace_client, bar }, plan, bar, tally).await
}

/// The direction from a workspace to this machine.
struct Download<'a> {
    workspace_client: &'a WorkspaceClient,
    bar: &'a ProgressBar,
}

impl CopyDirection for Download<'_> {
    type From = RemotePath;
    type To = PathBuf;

    async fn make_directory(
        &self,
        directory: &CopyDirectory<PathBuf>,
        root: bool,
    ) -> Result<Option<u32>, CopyFailure> {
        let is_new =
            make_directory(directory, root).map_err(|error| CopyFailure::write(&directory.to, error))?;
        Ok(directory.mode.filter(|_| is_new).map(|mode| mode & MODE_MASK))
    }

    async fn set_mode(&self, directory: &PathBuf, mode: u32) -> Result<(), CopyFailure> {
        fs::set_permissions(directory, Permissions::from_mode(mode)).map_err(|error| {
            // The files are copied, so that no failure concerns the whole copy any more.
            let scope = FailureScope::Path(SkipReason::Unwritable);
            CopyFailure { scope, ..CopyFailure::write(directory, error) }
        })
    }

    async fn attempt(
        &self,
        file: &CopyFile<RemotePath, PathBuf>,
        copied: &mut u64,
    ) -> Result<(), CopyFailure> {
        self.bar.set_message(file.from.show());
        let write_error = |error| CopyFailure::write(&file.to, error);
        check_replaceable(&file.to).map_err(write_error)?;
        let mut reader = RemoteFileReader::new(self.workspace_client, &file.from);
        // The first chunk is read before the file is created, so that a file that has vanished leaves
        // no trace in the directory.
        let mut chunk = reader.next().await?;
        let (partial_file, local) =
            PartialFile::create_beside(&file.to, PARTIAL_MODE).map_err(write_error)?;
        let mut local = BufWriter::new(File::from_std(local));
        while let Some(data) = chunk {
            local.write_all(&data).await.map_err(write_error)?;
            *copied += data.len() as u64;
            self.bar.inc(data.len() as u64);
            chunk = reader.next().await?;
        }
        local.flush().await.map_err(write_error)?;
        let local = local.into_inner().into_std().await;
        let (mode, modified) = reader.attributes().unwrap_or((file.mode, None));
        local.set_permissions(Permissions::from_mode(mode & MODE_MASK)).map_err(write_error)?;
        if let Some(modified) = modified {
            local.set_modified(modified).map_err(write_error)?;
        }
        fs::rename(partial_file.path(), &file.to).map_err(write_error)
    }
}

/// Creates a directory that only its owner may access if its mode is to be copied. An existing
/// directory keeps its mode. Returns whether the directory is new.
fn make_directory(directory: &CopyDirectory<PathBuf>, with_parents: bool) -> io::Result<bool> {
    if let Some(parent) = directory.to.parent().filter(|_| with_parents) {
        fs::create_dir_all(parent)?;
    }
    let mut builder = DirBuilder::new();
    if directory.mode.is_some() {
        builder.mode(OWNER_ACCESS);
    }
    match builder.create(&directory.to) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.to.is_dir() => Ok(false),
        created => created.map(|()| true),
    }
}

/// Writes a file of the workspace to standard output, a pipe or a device.
pub async fn download_to_stream(
    workspace_client: &WorkspaceClient,
    from: &RemotePath,
    sink: &LocalStream,
    tally: &mut CopyTally,
) -> Result<(), CommandFailure> {
    let bar = output::bytes_bar(None);
    let mut reader = RemoteFileReader::new(workspace_client, from);
    while let Some(data) = reader.next().await.map_err(|CopyFailure { failure, .. }| failure)? {
        sink.write_all(&data).await?;
        bar.inc(data.len() as u64);
    }
    (tally.files, tally.bytes) = (1, reader.offset);
    Ok(())
}

/// Fails if a rename would replace an entry that is not a file, such as a device.
fn check_replaceable(path: &Path) -> io::Result<()> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    if metadata.is_file() || metadata.is_symlink() {
        return Ok(());
    }
    let kind = if metadata.is_dir() { "a directory" } else { "a pipe, a socket or a device" };
    Err(io::Error::other(format!("the destination is {kind}")))
}

/// Reads a file of the workspace across broken connections.
struct RemoteFileReader<'a> {
    workspace_client: &'a WorkspaceClient,
    path: &'a RemotePath,
    offset: u64,
    first: Option<Entry>,
    stream: Option<Streaming<ReadFileResponse>>,
    backoff: RetryBackoff,
    tries: u32,
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
    async fn next(&mut self) -> Result<Option<bytes::Bytes>, CopyFailure> {
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
                Ok(None) if self.first.as_ref().is_some_and(|first| self.offset < first.size) => {
                    return Err(self.changed());
                }
                Ok(None) => return Ok(None),
                Err(status) if is_retryable(&status) && self.tries < MAX_ATTEMPTS => {
                    self.stream = None;
                    self.tries += 1;
                    sleep(self.backoff.next_delay()).await;
                }
                Err(status) => return Err(CopyFailure::remote(status, RemoteRole::Source)),
            }
        }
    }

    /// Returns the permission bits and the modification time of the file that was read.
    fn attributes(&self) -> Option<(u32, Option<SystemTime>)> {
        let entry = self.first.as_ref()?;
        Some((entry.mode, entry.modified.and_then(|at| SystemTime::try_from(at).ok())))
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

    /// Fails if a resumed stream reads another version of the file: its size, its modification time
    /// or its inode differ.
    fn check(&mut self, stat: Option<Entry>) -> Result<(), CopyFailure> {
        let Some(stat) = stat else { return Ok(()) };
        let version = |entry: &Entry| (entry.size, entry.modified, entry.device, entry.inode);
        let is_same = self.first.as_ref().is_none_or(|first| version(first) == version(&stat));
        self.first = Some(stat);
        if is_same || self.offset == 0 { Ok(()) } else { Err(self.changed()) }
    }

    fn changed(&self) -> CopyFailure {
        CopyFailure::changed(&self.path.show())
    }
}
