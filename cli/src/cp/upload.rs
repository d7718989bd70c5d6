//! Copies files from this machine to a workspace.

use std::{io, path::PathBuf};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use indicatif::ProgressBar;
use podling_proto::agent::v1::{MkdirRequest, WriteFileRequest, WriteFileResponse, WriteOpen};
use ring::digest::{Context, Digest, SHA256};
use tokio::{fs, io::AsyncReadExt as _, sync::mpsc, time::sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{
    CONCURRENT_FILES, MAX_ATTEMPTS,
    endpoint::RemotePath,
    plan::{CopyFile, CopyPlan},
};
use crate::{
    backoff::{RetryBackoff, is_retryable, retry_call},
    client::WorkspaceClient,
    failure::CommandFailure,
    stdio::AsyncStdio,
};

/// Bytes of data per message.
const CHUNK: usize = 256 * 1024;
/// Messages queued for the connection. When the queue is full, reading waits.
const QUEUE: usize = 4;

enum UploadError {
    /// The agent refused, or the connection broke.
    Remote(Status),
    /// The local file could not be read.
    Local(CommandFailure),
}

/// Creates the directories of a plan and uploads its files.
pub async fn upload(
    workspace_client: &WorkspaceClient,
    plan: CopyPlan<PathBuf, RemotePath>,
    bar: &ProgressBar,
) -> Result<(), CommandFailure> {
    for directory in &plan.directories {
        let request =
            MkdirRequest { path: Some(directory.wire()), mode: 0, parents: true, replace_mode: false };
        retry_call(|| {
            let (mut files, request) = (workspace_client.files(), request.clone());
            async move { files.mkdir(request).await }
        })
        .await?;
    }
    let copies =
        stream::iter(plan.files).map(|file| async move { upload_file(workspace_client, &file, bar).await });
    copies.buffer_unordered(CONCURRENT_FILES).try_collect().await
}

async fn upload_file(
    workspace_client: &WorkspaceClient,
    file: &CopyFile<PathBuf, RemotePath>,
    bar: &ProgressBar,
) -> Result<(), CommandFailure> {
    bar.set_message(file.to.show());
    let mut backoff = RetryBackoff::default();
    let mut tries = 0;
    loop {
        tries += 1;
        let mut sent = 0;
        match attempt(workspace_client, file, bar, &mut sent).await {
            Ok(()) => return Ok(()),
            Err(UploadError::Remote(status)) if is_retryable(&status) && tries < MAX_ATTEMPTS => {
                // The next attempt sends the whole file again.
                bar.set_position(bar.position().saturating_sub(sent));
                sleep(backoff.next_delay()).await;
            }
            Err(UploadError::Remote(status)) => return Err(status.into()),
            Err(UploadError::Local(failure)) => return Err(failure),
        }
    }
}

async fn attempt(
    workspace_client: &WorkspaceClient,
    file: &CopyFile<PathBuf, RemotePath>,
    bar: &ProgressBar,
    sent: &mut u64,
) -> Result<(), UploadError> {
    let digest = sha256_of_file(&file.from).await.map_err(UploadError::Local)?;
    let open = WriteOpen {
        path: Some(file.to.wire()),
        mode: file.mode & 0o7777,
        sha256: digest.as_ref().to_vec(),
        modified: file.modified.map(prost_types::Timestamp::from),
        ..WriteOpen::default()
    };
    let read_error = || CommandFailure::io(format!("cannot read {}", file.from.display()));
    let mut source = fs::File::open(&file.from).await.map_err(read_error()).map_err(UploadError::Local)?;
    write(workspace_client, open, async |tx| {
        loop {
            let chunk = read_chunk(&mut source).await.map_err(read_error())?;
            let count = chunk.len() as u64;
            if count == 0 || tx.send(WriteFileRequest { open: None, data: chunk }).await.is_err() {
                return Ok(());
            }
            *sent += count;
            bar.inc(count);
        }
    })
    .await?;
    Ok(())
}

/// Uploads standard input to a file. Returns the number of bytes. The digest is compared after the
/// upload, because it is not known before.
pub async fn upload_stdin(
    workspace_client: &WorkspaceClient,
    to: &RemotePath,
    bar: &ProgressBar,
) -> Result<u64, CommandFailure> {
    let read_error = || CommandFailure::io("cannot read standard input");
    let stdin = AsyncStdio::stdin().map_err(read_error())?;
    let mut hash = Context::new(&SHA256);
    let mut total = 0;
    let open = WriteOpen { path: Some(to.wire()), ..WriteOpen::default() };
    let written = write(workspace_client, open, async |tx| {
        let mut buffer = vec![0; CHUNK];
        loop {
            let count = stdin.read(&mut buffer).await.map_err(read_error())?;
            let data = Bytes::copy_from_slice(&buffer[..count]);
            hash.update(&data);
            if count == 0 || tx.send(WriteFileRequest { open: None, data }).await.is_err() {
                return Ok(());
            }
            total += count as u64;
            bar.inc(count as u64);
        }
    })
    .await;
    let written = match written {
        Ok(written) => written,
        Err(UploadError::Remote(status)) => return Err(status.into()),
        Err(UploadError::Local(failure)) => return Err(failure),
    };
    if written.sha256 != hash.finish().as_ref() {
        let message =
            format!("cannot copy to {}: the file arrived with a wrong checksum; try again", to.show());
        return Err(CommandFailure::Other(message));
    }
    Ok(total)
}

/// Makes one `Files.Write` call and sends the messages of `feed`. If `feed` fails, the call is
/// cancelled, so that the agent does not accept a partial file.
async fn write(
    workspace_client: &WorkspaceClient,
    open: WriteOpen,
    feed: impl AsyncFnOnce(&mpsc::Sender<WriteFileRequest>) -> Result<(), CommandFailure>,
) -> Result<WriteFileResponse, UploadError> {
    let (tx, rx) = mpsc::channel(QUEUE);
    let mut files = workspace_client.files();
    let call = files.write(ReceiverStream::new(rx));
    tokio::pin!(call);
    let feeding = async {
        let open = WriteFileRequest { open: Some(open), data: Bytes::new() };
        // A closed channel means that the call has ended; its result has the reason.
        if tx.send(open).await.is_ok() { feed(&tx).await } else { Ok(()) }
    };
    tokio::select! {
        answer = &mut call => return answer.map(tonic::Response::into_inner).map_err(UploadError::Remote),
        fed = feeding => fed.map_err(UploadError::Local)?,
    }
    // Closing the channel marks the end of the file.
    drop(tx);
    call.await.map(tonic::Response::into_inner).map_err(UploadError::Remote)
}

async fn sha256_of_file(path: &PathBuf) -> Result<Digest, CommandFailure> {
    let read_error = || CommandFailure::io(format!("cannot read {}", path.display()));
    let mut file = fs::File::open(path).await.map_err(read_error())?;
    let mut hash = Context::new(&SHA256);
    loop {
        let chunk = read_chunk(&mut file).await.map_err(read_error())?;
        if chunk.is_empty() {
            return Ok(hash.finish());
        }
        hash.update(&chunk);
    }
}

async fn read_chunk(file: &mut fs::File) -> io::Result<Bytes> {
    let mut buffer = Vec::with_capacity(CHUNK);
    file.take(CHUNK as u64).read_to_end(&mut buffer).await?;
    Ok(buffer.into())
}
