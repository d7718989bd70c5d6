//! Copies files from a workspace to this machine.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::Path,
    time::SystemTime,
};

use podling_proto::agent::v1::{Entry, ReadFileRequest, ReadFileResponse};
use tokio::{
    fs::File,
    io::{AsyncWriteExt as _, BufWriter},
};

use super::{
    copy::{CopyDirection, CopyTally, FileProgress, MAX_ATTEMPTS, OWNER_ACCESS},
    endpoint::{show, to_wire},
    plan::{CopyDirectory, CopyFile},
    skipped::{CopyFailure, FailureScope, RemoteRole, SkipReason},
};
use crate::{
    backoff::{ResumedStream, is_retryable},
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

/// The direction from a workspace to this machine.
#[derive(Debug)]
pub struct Download<'a>(pub &'a WorkspaceClient);

impl CopyDirection for Download<'_> {
    async fn make_directory(
        &self,
        directory: &CopyDirectory,
        root: bool,
    ) -> Result<Option<u32>, CopyFailure> {
        let is_new =
            make_directory(directory, root).map_err(|error| CopyFailure::write(&directory.to, error))?;
        Ok(directory.mode.filter(|_| is_new).map(|mode| mode & MODE_MASK))
    }

    async fn set_mode(&self, directory: &Path, mode: u32) -> Result<(), CopyFailure> {
        fs::set_permissions(directory, Permissions::from_mode(mode)).map_err(|error| {
            // The files are copied, so that no failure concerns the whole copy any more.
            let scope = FailureScope::Path(SkipReason::Unwritable);
            CopyFailure { scope, ..CopyFailure::write(directory, error) }
        })
    }

    async fn attempt(&self, file: &CopyFile, progress: &mut FileProgress<'_>) -> Result<(), CopyFailure> {
        progress.bar.set_message(show(&file.from));
        let write_error = |error| CopyFailure::write(&file.to, error);
        check_replaceable(&file.to).map_err(write_error)?;
        let mut reader = RemoteFileReader::new(self.0, &file.from);
        // The first chunk is read before the file is created, so that a file that has vanished leaves
        // no trace in the directory.
        let mut chunk = reader.next().await?;
        let (partial_file, local) =
            PartialFile::create_beside(&file.to, PARTIAL_MODE).map_err(write_error)?;
        let mut local = BufWriter::new(File::from_std(local));
        while let Some(data) = chunk {
            local.write_all(&data).await.map_err(write_error)?;
            progress.add(data.len());
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
fn make_directory(directory: &CopyDirectory, with_parents: bool) -> io::Result<bool> {
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
    from: &Path,
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
    path: &'a Path,
    offset: u64,
    first: Option<Entry>,
    stream: ResumedStream<ReadFileResponse>,
    tries: u32,
}

impl<'a> RemoteFileReader<'a> {
    fn new(workspace_client: &'a WorkspaceClient, path: &'a Path) -> Self {
        let stream = ResumedStream::default();
        Self { workspace_client, path, offset: 0, first: None, stream, tries: 0 }
    }

    /// Returns the next chunk, or `None` at the end of a complete file.
    async fn next(&mut self) -> Result<Option<bytes::Bytes>, CopyFailure> {
        loop {
            let request = ReadFileRequest { path: Some(to_wire(self.path)), offset: self.offset, length: 0 };
            let open = async || self.workspace_client.files().read(request).await;
            match self.stream.next(open).await {
                Ok(Some(message)) => {
                    self.check(message.stat)?;
                    self.tries = 0;
                    self.offset += message.data.len() as u64;
                    if !message.data.is_empty() {
                        return Ok(Some(message.data));
                    }
                }
                Ok(None) if self.first.as_ref().is_some_and(|first| self.offset < first.size) => {
                    return Err(CopyFailure::changed(self.path));
                }
                Ok(None) => return Ok(None),
                Err(status) if is_retryable(&status) && self.tries < MAX_ATTEMPTS => {
                    self.tries += 1;
                    self.stream.back_off().await;
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

    /// Fails if a resumed stream reads another version of the file: its size, its modification time
    /// or its inode differ.
    fn check(&mut self, stat: Option<Entry>) -> Result<(), CopyFailure> {
        let Some(stat) = stat else { return Ok(()) };
        let version = |entry: &Entry| (entry.size, entry.modified, entry.device, entry.inode);
        let is_same = self.first.as_ref().is_none_or(|first| version(first) == version(&stat));
        self.first = Some(stat);
        if is_same || self.offset == 0 { Ok(()) } else { Err(CopyFailure::changed(self.path)) }
    }
}
