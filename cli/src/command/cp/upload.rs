//! Copies files from this machine to a workspace.

use std::{
    fs::Metadata,
    io::{self, SeekFrom},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use bytes::Bytes;
use podling_proto::{
    agent::v1::{MkdirRequest, WriteFileRequest, WriteFileResponse, WriteOpen},
    error::{self, Reason},
};
use ring::digest::{Context, Digest, SHA256};
use rustix::fs::OFlags;
use tokio::{
    fs,
    io::{AsyncReadExt as _, AsyncSeekExt as _},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{
    copy::{CopyDirection, CopyTally, FileProgress, OWNER_ACCESS},
    endpoint::{show, to_wire},
    plan::{CopyDirectory, CopyFile},
    skipped::{CopyFailure, RemoteRole},
};
use crate::{
    backoff::retry_call, client::WorkspaceClient, failure::CommandFailure, local_file::LocalStream, output,
};

/// Bytes of data per message.
const CHUNK: usize = 256 * 1024;
/// Messages queued for the connection. When the queue is full, reading waits.
const QUEUE: usize = 4;
/// The strictest permission bits that the protocol can express. Its 0 stands for a default.
const STRICTEST_MODE: u32 = 0o400;

/// The direction from this machine to a workspace.
#[derive(Debug)]
pub struct Upload<'a>(pub &'a WorkspaceClient);

impl CopyDirection for Upload<'_> {
    async fn make_directory(
        &self,
        directory: &CopyDirectory,
        _root: bool,
    ) -> Result<Option<u32>, CopyFailure> {
        // The owner needs access until the files are copied.
        let initial_mode = directory.mode.map_or(0, |mode| mode | OWNER_ACCESS);
        let is_new = make_directory(self.0, &directory.to, initial_mode).await;
        let is_new = is_new.map_err(|status| CopyFailure::remote(status, RemoteRole::Destination))?;
        Ok(directory.mode.filter(|mode| is_new && *mode != initial_mode))
    }

    async fn set_mode(&self, directory: &Path, mode: u32) -> Result<(), CopyFailure> {
        let mode = if mode == 0 { STRICTEST_MODE } else { mode };
        let request =
            MkdirRequest { path: Some(to_wire(directory)), mode, parents: true, replace_mode: true };
        let made = mkdir(self.0, request).await;
        made.map_err(|status| CopyFailure::remote(status, RemoteRole::Destination))
    }

    async fn attempt(&self, file: &CopyFile, progress: &mut FileProgress<'_>) -> Result<(), CopyFailure> {
        progress.bar.set_message(show(&file.to));
        let read_error = |error| CopyFailure::read(&file.from, error);
        let (mut source, metadata) = open_regular(&file.from).await.map_err(read_error)?;
        let mut open = WriteOpen {
            path: Some(to_wire(&file.to)),
            mode: match metadata.permissions().mode() & 0o7777 {
                0 => STRICTEST_MODE,
                mode => mode,
            },
            modified: metadata.modified().ok().map(prost_types::Timestamp::from),
            ..WriteOpen::default()
        };
        // Files in /proc report no size, and their content may differ at each read.
        if metadata.len() == 0 {
            let chunks = async || read_chunk(&mut source, CHUNK as u64).await.map_err(read_error);
            return upload_stream(self.0, open, chunks, progress).await;
        }
        // Content that is appended from now on is not copied. A file that is written all the time has an end.
        let (digest, length) = hash_prefix(&mut source, metadata.len()).await.map_err(read_error)?;
        open.sha256 = digest.as_ref().to_vec();
        source.seek(SeekFrom::Start(0)).await.map_err(read_error)?;
        let written = write(self.0, open, async |tx| {
            while progress.copied < length {
                let data = read_chunk(&mut source, length - progress.copied).await.map_err(read_error)?;
                let count = data.len();
                if count == 0 {
                    return Err(CopyFailure::changed(&file.from));
                }
                if tx.send(WriteFileRequest { open: None, data }).await.is_err() {
                    return Ok(());
                }
                progress.add(count);
            }
            Ok(())
        });
        written.await.map(|_| ())
    }
}

/// Creates a directory, with the missing ones above it. An existing directory keeps its mode.
/// Returns whether the directory is new.
pub async fn make_directory(
    workspace_client: &WorkspaceClient,
    to: &Path,
    mode: u32,
) -> Result<bool, Status> {
    let request = |parents| MkdirRequest { path: Some(to_wire(to)), mode, parents, replace_mode: false };
    if to.as_os_str().is_empty() {
        return Ok(false);
    }
    match mkdir(workspace_client, request(false)).await {
        Err(status) if error::reason(&status) == Some(Reason::PathExists) => {
            mkdir(workspace_client, request(true)).await.map(|()| false)
        }
        Err(status) if error::reason(&status) == Some(Reason::PathNotFound) => {
            mkdir(workspace_client, request(true)).await.map(|()| true)
        }
        made => made.map(|()| true),
    }
}

async fn mkdir(workspace_client: &WorkspaceClient, request: MkdirRequest) -> Result<(), Status> {
    let made = retry_call(async || workspace_client.files().mkdir(request.clone()).await);
    made.await.map(|_| ())
}

/// Opens a regular file. Does not wait for the other end of a pipe that has replaced the file.
async fn open_regular(path: &Path) -> io::Result<(fs::File, Metadata)> {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(path).await?;
    let metadata = file.metadata().await?;
    if metadata.is_file() { Ok((file, metadata)) } else { Err(io::Error::other("is not a regular file")) }
}

/// Uploads standard input, a pipe or a device until its end.
pub async fn upload_from_stream(
    workspace_client: &WorkspaceClient,
    source: &LocalStream,
    to: &Path,
    tally: &mut CopyTally,
) -> Result<(), CommandFailure> {
    let open = WriteOpen { path: Some(to_wire(to)), ..WriteOpen::default() };
    let mut buffer = vec![0; CHUNK];
    let chunks = async || match source.read(&mut buffer).await {
        Ok(count) => Ok(Bytes::copy_from_slice(&buffer[..count])),
        Err(failure) => Err(failure.into()),
    };
    let mut progress = FileProgress { bar: &output::bytes_bar(None), copied: 0 };
    let sending = upload_stream(workspace_client, open, chunks, &mut progress);
    sending.await.map_err(|CopyFailure { failure, .. }| failure)?;
    (tally.files, tally.bytes) = (1, progress.copied);
    Ok(())
}

/// Uploads a source of unknown length. The digest is compared after the upload, because it is not
/// known before. An empty chunk is the end.
async fn upload_stream(
    workspace_client: &WorkspaceClient,
    open: WriteOpen,
    mut chunks: impl AsyncFnMut() -> Result<Bytes, CopyFailure>,
    progress: &mut FileProgress<'_>,
) -> Result<(), CopyFailure> {
    let mut hash = Context::new(&SHA256);
    let written = write(workspace_client, open, async |tx| {
        loop {
            let data = chunks().await?;
            hash.update(&data);
            let count = data.len();
            if count == 0 || tx.send(WriteFileRequest { open: None, data }).await.is_err() {
                return Ok(());
            }
            progress.add(count);
        }
    });
    if written.await?.sha256 == hash.finish().as_ref() {
        return Ok(());
    }
    let message = "the file arrived with a wrong checksum; copy it again";
    Err(CommandFailure::Other(message.to_owned()).into())
}

/// Makes one `Files.Write` call and sends the messages of `feed`. If `feed` fails, the agent rejects
/// the call, so that it does not accept a partial file.
async fn write(
    workspace_client: &WorkspaceClient,
    open: WriteOpen,
    feed: impl AsyncFnOnce(&mpsc::Sender<WriteFileRequest>) -> Result<(), CopyFailure>,
) -> Result<WriteFileResponse, CopyFailure> {
    let (tx, rx) = mpsc::channel(QUEUE);
    let mut files = workspace_client.files();
    let call = files.write(ReceiverStream::new(rx));
    tokio::pin!(call);
    let answered = |answer: Result<tonic::Response<WriteFileResponse>, Status>| {
        let failed = |status| CopyFailure::remote(status, RemoteRole::Destination);
        answer.map(tonic::Response::into_inner).map_err(failed)
    };
    let feeding = async {
        let open = WriteFileRequest { open: Some(open), data: Bytes::new() };
        // A closed channel means that the call has ended; its result has the reason.
        if tx.send(open).await.is_ok() { feed(&tx).await } else { Ok(()) }
    };
    let fed = tokio::select! {
        answer = &mut call => return answered(answer),
        fed = feeding => fed,
    };
    if let Err(failure) = fed {
        // Closing the channel would mark the end of the file. A second `open` is invalid.
        let invalid = WriteFileRequest { open: Some(WriteOpen::default()), data: Bytes::new() };
        tokio::select! {
            _ = &mut call => return Err(failure),
            _ = tx.send(invalid) => {}
        }
        let _rejected = call.await;
        return Err(failure);
    }
    // Closing the channel marks the end of the file.
    drop(tx);
    answered(call.await)
}

/// Returns the digest and the length of at most the first `limit` bytes.
async fn hash_prefix(file: &mut fs::File, limit: u64) -> io::Result<(Digest, u64)> {
    let mut hash = Context::new(&SHA256);
    let mut length = 0;
    loop {
        let chunk = read_chunk(file, limit - length).await?;
        if chunk.is_empty() {
            return Ok((hash.finish(), length));
        }
        hash.update(&chunk);
        length += chunk.len() as u64;
    }
}

/// Reads at most `limit` bytes. Returns no bytes at the end.
async fn read_chunk(file: &mut fs::File, limit: u64) -> io::Result<Bytes> {
    let mut buffer = Vec::with_capacity(CHUNK);
    file.take(limit.min(CHUNK as u64)).read_to_end(&mut buffer).await?;
    Ok(buffer.into())
}
