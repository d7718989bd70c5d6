//! gRPC service `podling.agent.v1.Files`.

use std::{pin::Pin, time::SystemTime};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use podling_proto::{
    agent::{v1 as wire, v1::files_server},
    error::{Reason, WireError},
};
use tonic::{Request, Response, Status, Streaming};

use super::{bad_field, path, sha256, sized, status};
use crate::files::{
    FileEntry, FileError, FileKind, Files, RelPath, SymlinkMode, UploadProgress, WriteOptions, WrittenFile,
};

#[derive(Debug, Clone)]
pub struct FilesService {
    files: Files,
}

impl FilesService {
    pub fn new(files: Files) -> Self {
        Self { files }
    }
}

type FileReply<T> = Result<Response<T>, Status>;
type FileStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl files_server::Files for FilesService {
    async fn stat(&self, request: Request<wire::StatRequest>) -> FileReply<wire::StatResponse> {
        let request = request.into_inner();
        let links = if request.no_follow { SymlinkMode::NoFollow } else { SymlinkMode::Follow };
        let entry = self.files.stat(path(request.path)?, links).await.map_err(status)?;
        Ok(Response::new(wire::StatResponse { entry: Some(entry.into()) }))
    }

    type ListStream = FileStream<wire::ListFilesResponse>;

    async fn list(&self, request: Request<wire::ListFilesRequest>) -> FileReply<Self::ListStream> {
        let pages = self.files.list(path(request.into_inner().path)?).await.map_err(status)?;
        let message = |page: Vec<FileEntry>| wire::ListFilesResponse {
            entries: page.into_iter().map(wire::Entry::from).collect(),
        };
        Ok(Response::new(pages.map_ok(message).map_err(status).boxed()))
    }

    type ReadStream = FileStream<wire::ReadFileResponse>;

    async fn read(&self, request: Request<wire::ReadFileRequest>) -> FileReply<Self::ReadStream> {
        let request = request.into_inner();
        let reading = self.files.read(path(request.path)?).await.map_err(status)?;
        let length = (request.length > 0).then_some(request.length);
        let reading = reading.range(request.offset, length).map_err(status)?;
        let stat = wire::ReadFileResponse { stat: Some(reading.entry.clone().into()), data: Bytes::new() };
        let data =
            reading.pieces().map_ok(|data| wire::ReadFileResponse { stat: None, data }).map_err(status);
        Ok(Response::new(stream::iter([Ok(stat)]).chain(data).boxed()))
    }

    async fn write(
        &self,
        request: Request<Streaming<wire::WriteFileRequest>>,
    ) -> FileReply<wire::WriteFileResponse> {
        let mut messages = request.into_inner();
        let first = messages.message().await?.unwrap_or_default();
        let ((path, options), data) = (open(first.open)?, sized(first.data)?);
        let mut feed = self.files.write(path, options).await.map_err(status)?;
        feed.push(data).await.map_err(status)?;
        while let Some(next) = messages.message().await? {
            if next.open.is_some() {
                return Err(bad_field("open", "set in the first message only"));
            }
            feed.push(sized(next.data)?).await.map_err(status)?;
        }
        Ok(Response::new(feed.finish().await.map_err(status)?.into()))
    }

    async fn write_chunk(
        &self,
        request: Request<wire::WriteChunkRequest>,
    ) -> FileReply<wire::WriteChunkResponse> {
        let request = request.into_inner();
        let data = sized(request.data)?;
        let upload = match (request.upload_id, request.open) {
            (id, None) if !id.is_empty() => id,
            (id, opening @ Some(_)) if id.is_empty() => {
                let (path, options) = open(opening)?;
                if request.offset > 0 {
                    return Err(status(FileError::InputGap { offset: request.offset, expected: 0 }));
                }
                self.files.begin_upload(path, options).await.map_err(status)?
            }
            _ => return Err(bad_field("open", "set if and only if upload_id is empty")),
        };
        let progress =
            self.files.chunk(upload, request.offset, data, request.finish).await.map_err(status)?;
        Ok(Response::new(progress.into()))
    }

    async fn mkdir(&self, request: Request<wire::MkdirRequest>) -> FileReply<wire::MkdirResponse> {
        let request = request.into_inner();
        let (path, mode) = (path(request.path)?, mode(request.mode)?);
        self.files.mkdir(path.clone(), mode, request.parents).await.map_err(status)?;
        if let Some(mode) = mode.filter(|_| request.replace_mode) {
            self.files.set_directory_mode(path, mode).await.map_err(status)?;
        }
        Ok(Response::new(wire::MkdirResponse {}))
    }

    async fn r#move(&self, request: Request<wire::MoveRequest>) -> FileReply<wire::MoveResponse> {
        let request = request.into_inner();
        let (from, to) = (path(request.from)?, path(request.to)?);
        self.files.rename(from, to, request.replace).await.map_err(status)?;
        Ok(Response::new(wire::MoveResponse {}))
    }

    async fn remove(&self, request: Request<wire::RemoveRequest>) -> FileReply<wire::RemoveResponse> {
        let request = request.into_inner();
        let removed = self.files.remove(path(request.path)?, request.recursive).await.map_err(status)?;
        Ok(Response::new(wire::RemoveResponse { removed }))
    }
}

// === in ===

fn open(open: Option<wire::WriteOpen>) -> Result<(RelPath, WriteOptions), Status> {
    let open = open.ok_or_else(|| bad_field("open", "set in the first message"))?;
    let modified = open.modified.map(SystemTime::try_from).transpose();
    let options = WriteOptions {
        mode: mode(open.mode)?,
        sha256: sha256(&open.sha256)?,
        create_only: open.create_only,
        make_parents: open.make_parents,
        modified: modified.map_err(|_| bad_field("modified", "a time that this system supports"))?,
    };
    Ok((path(open.path)?, options))
}

fn mode(mode: u32) -> Result<Option<u32>, Status> {
    match mode {
        0 => Ok(None),
        1..=0o7777 => Ok(Some(mode)),
        _ => Err(bad_field("mode", "permission bits of at most 0o7777")),
    }
}

// === out ===

impl From<FileKind> for wire::FileKind {
    fn from(kind: FileKind) -> Self {
        match kind {
            FileKind::File => Self::File,
            FileKind::Directory => Self::Directory,
            FileKind::Symlink => Self::Symlink,
            FileKind::Other => Self::Other,
        }
    }
}

impl From<FileEntry> for wire::Entry {
    fn from(entry: FileEntry) -> Self {
        let (name, raw_name) = match String::from_utf8(entry.name) {
            Ok(name) => (name, Vec::new()),
            Err(raw) => (String::from_utf8_lossy(raw.as_bytes()).into_owned(), raw.into_bytes()),
        };
        Self {
            name,
            raw_name,
            kind: wire::FileKind::from(entry.kind).into(),
            size: entry.size,
            mode: entry.mode,
            modified: Some(entry.modified.into()),
            link_target: entry.link_target,
            device: entry.device,
            inode: entry.ino,
        }
    }
}

impl From<WrittenFile> for wire::WriteFileResponse {
    fn from(written: WrittenFile) -> Self {
        Self { entry: Some(written.entry.into()), sha256: written.sha256.to_vec() }
    }
}

impl From<UploadProgress> for wire::WriteChunkResponse {
    fn from(progress: UploadProgress) -> Self {
        Self {
            upload_id: progress.id,
            next_offset: progress.next,
            finished: progress.finished.map(Into::into),
        }
    }
}

impl From<FileError> for WireError {
    fn from(error: FileError) -> Self {
        let message = error.to_string();
        let of = |reason| Self::new(reason, message);
        match error {
            FileError::BadPath { path, problem: _ } => of(Reason::BadPath).with("path", path),
            FileError::BadField { field, allowed } => {
                of(Reason::BadField).with("field", field).with("allowed", allowed)
            }
            FileError::NotFound { path } => of(Reason::PathNotFound).with("path", path),
            FileError::Exists { path } => of(Reason::PathExists).with("path", path),
            FileError::WrongKind { path, problem: _ } => of(Reason::WrongFileKind).with("path", path),
            FileError::NotEmpty { path } => of(Reason::DirectoryNotEmpty).with("path", path),
            FileError::Escapes { path } => of(Reason::PathEscapes).with("path", path),
            FileError::DiskFull { path, errno } => {
                of(Reason::DiskFull).with("what", path).with("errno", errno.raw_os_error())
            }
            FileError::NoDescriptors { path, errno } => {
                of(Reason::NoFileDescriptors).with("what", path).with("errno", errno.raw_os_error())
            }
            FileError::TooLarge { what, limit } => {
                let error = of(Reason::TooLarge).with("what", what);
                limit.map_or(error.clone(), |limit| error.with("limit", limit))
            }
            FileError::DigestMismatch { path, promised, got } => {
                of(Reason::DigestMismatch).with("path", path).with("promised", promised).with("got", got)
            }
            FileError::BadOffset { path, offset: _, size } => {
                of(Reason::BadOffset).with("path", path).with("next", size)
            }
            FileError::Shrunk { path, end } => of(Reason::Conflict).with("path", path).with("size", end),
            FileError::InputGap { offset: _, expected } => {
                of(Reason::InputGap).with("expected_offset", expected)
            }
            FileError::UploadNotFound { id } => of(Reason::UploadNotFound).with("id", id),
            FileError::TooManyUploads { limit } => {
                of(Reason::TooManyUploads).with("what", "uploads").with("limit", limit)
            }
            FileError::TooManyStreams { limit } => {
                of(Reason::TooManyStreams).with("what", "file streams").with("limit", limit)
            }
            FileError::Rejected(rejection) => rejection.into(),
            FileError::Fault { operation } => of(Reason::Internal).with("operation", operation),
            FileError::Io { operation, path, errno } => of(Reason::Io)
                .with("operation", operation)
                .with("path", path)
                .with("errno", errno.raw_os_error()),
        }
    }
}
