//! gRPC service `podling.agent.v1.Archives`.

use std::pin::Pin;

use futures_util::{Stream, StreamExt};
use podling_proto::{
    agent::v1::{
        self as wire, archives_server, create_archive_response as made, extract_archive_response as extracted,
    },
    error::{Reason, WireError},
};
use tonic::{Request, Response, Status, Streaming};

use super::files::{bad_field, path, sha256, sized};
use crate::archive::{
    ArchiveError, ArchiveProgress, ArchiveSummary, ArchivedEntry, Archives, CreateEvent, CreateOptions,
    ExtractEvent, ExtractOptions, UnarchivedEntry,
};

#[derive(Debug, Clone)]
pub struct ArchivesService {
    archives: Archives,
}

impl ArchivesService {
    pub fn new(archives: Archives) -> Self {
        Self { archives }
    }
}

type ArchiveReply<T> = Result<Response<T>, Status>;
type ArchiveStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl archives_server::Archives for ArchivesService {
    type CreateStream = ArchiveStream<wire::CreateArchiveResponse>;

    async fn create(&self, request: Request<wire::CreateArchiveRequest>) -> ArchiveReply<Self::CreateStream> {
        let request = request.into_inner();
        let options = CreateOptions {
            preservation: request.preservation,
            ignore: request.ignore.into_iter().map(String::into_bytes).collect(),
            ignore_files: request.ignore_files,
        };
        let events = self.archives.create(path(request.path)?, options).await.map_err(status)?;
        let messages = events.map(|event| event.map(Into::into).map_err(status));
        Ok(Response::new(messages.boxed()))
    }

    type ExtractStream = ArchiveStream<wire::ExtractArchiveResponse>;

    async fn extract(
        &self,
        request: Request<Streaming<wire::ExtractArchiveRequest>>,
    ) -> ArchiveReply<Self::ExtractStream> {
        let mut messages = request.into_inner();
        let first = messages.message().await?.unwrap_or_default();
        let open = first.open.ok_or_else(|| bad_field("open", "set in the first message"))?;
        let options = ExtractOptions {
            replace: open.replace,
            preservation: open.preservation,
            sha256: sha256(&open.sha256)?,
        };
        let data = sized(first.data)?;
        let mut receiving = self.archives.receive(path(open.path)?, options).await.map_err(status)?;
        receiving.push(data).await.map_err(status)?;
        while let Some(next) = messages.message().await? {
            if next.open.is_some() {
                return Err(bad_field("open", "set in the first message only"));
            }
            receiving.push(sized(next.data)?).await.map_err(status)?;
        }
        let events = receiving.extract().await.map_err(status)?;
        let messages = events.map(|event| event.map(Into::into).map_err(status));
        Ok(Response::new(messages.boxed()))
    }
}

// === out ===

impl From<CreateEvent> for wire::CreateArchiveResponse {
    fn from(event: CreateEvent) -> Self {
        let message = match event {
            CreateEvent::Data(data) => made::Message::Data(data),
            CreateEvent::Entry(line) => made::Message::Entry(line.into()),
            CreateEvent::Progress(progress) => made::Message::Progress(progress.into()),
            CreateEvent::Summary(done) => made::Message::Done(done.into()),
        };
        Self { message: Some(message) }
    }
}

impl From<ExtractEvent> for wire::ExtractArchiveResponse {
    fn from(event: ExtractEvent) -> Self {
        let message = match event {
            ExtractEvent::Progress(progress) => extracted::Message::Progress(progress.into()),
            ExtractEvent::Done { entries, bytes } => {
                extracted::Message::Done(wire::ExtractDone { entries, bytes })
            }
        };
        Self { message: Some(message) }
    }
}

impl From<ArchivedEntry> for wire::ArchiveEntry {
    fn from(line: ArchivedEntry) -> Self {
        Self {
            path: line.path,
            kind: wire::FileKind::from(line.kind).into(),
            size: line.size,
            mode: line.mode,
            modified: Some(line.modified.into()),
            sha256: line.sha256.map(Into::into).unwrap_or_default(),
            hard_link: line.hard_link,
            fifo: line.fifo,
        }
    }
}

impl From<ArchiveProgress> for wire::ArchiveProgress {
    fn from(progress: ArchiveProgress) -> Self {
        Self { entries: progress.entries, bytes: progress.bytes, total_bytes: progress.total_bytes }
    }
}

impl From<ArchiveSummary> for wire::ArchiveDone {
    fn from(done: ArchiveSummary) -> Self {
        Self {
            entries: done.entries,
            bytes: done.bytes,
            archive_bytes: done.archive_bytes,
            archive_sha256: done.archive_sha256.into(),
            skipped: done.skipped.into_iter().map(Into::into).collect(),
            skipped_count: done.skipped_count,
        }
    }
}

impl From<UnarchivedEntry> for wire::SkippedEntry {
    fn from(skipped: UnarchivedEntry) -> Self {
        Self { path: skipped.path, reason: skipped.reason }
    }
}

fn status(error: ArchiveError) -> Status {
    WireError::from(error).into()
}

impl From<ArchiveError> for WireError {
    fn from(error: ArchiveError) -> Self {
        let message = error.to_string();
        match error {
            ArchiveError::File(error) => error.into(),
            ArchiveError::Unsafe { entry, cause } => {
                Self::new(Reason::UnsafeArchive, message).with("entry", entry).with("cause", cause)
            }
            ArchiveError::TooManyEntries { limit } => Self::new(Reason::TooLarge, message)
                .with("what", "entries of an archive")
                .with("limit", limit),
            ArchiveError::TooManyArchives { limit } => {
                Self::new(Reason::TooManyStreams, message).with("what", "archives").with("limit", limit)
            }
        }
    }
}
