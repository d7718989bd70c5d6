//! gRPC service `podling.agent.v1.Archives`, and exports over plain HTTP for browsers and curl,
//! whose calls the router has authorized.
//!
//! `GET /export.zip?path=<directory>` returns the directory (default: the root) as a zip, without
//! ignore rules. If an entry could not be read, the response is aborted before its end. Otherwise a
//! client would take an incomplete archive for a complete one.

use std::{io, pin::Pin};

use axum::{Router, body::Body, extract::State, response::Response as HttpResponse, routing::get};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt};
use http::{HeaderValue, Uri, header};
use podling_proto::{
    agent::{
        v1 as wire,
        v1::{archives_server, create_archive_response as made, extract_archive_response as extracted},
    },
    error::{Reason, WireError},
    error_response::WireProtocol,
};
use tonic::{Request, Response, Status, Streaming};

use super::{bad_field, parse, path, sha256, sized};
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

pub fn router(archives: Archives) -> Router {
    Router::new().route("/export.zip", get(download)).with_state(archives)
}

async fn download(State(archives): State<Archives>, uri: Uri) -> HttpResponse {
    send(archives, &uri).await.unwrap_or_else(|error| WireProtocol::Http.error_response(error))
}

async fn send(archives: Archives, uri: &Uri) -> Result<HttpResponse, ArchiveError> {
    let events = archives.create(parse(&directory(uri))?, CreateOptions::default()).await?;
    let body = events.map_err(io::Error::other).try_filter_map(|event| async { bytes(event) });
    let mut response = HttpResponse::new(Body::from_stream(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/zip"));
    let attached = HeaderValue::from_static("attachment; filename=\"archive.zip\"");
    headers.insert(header::CONTENT_DISPOSITION, attached);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
    Ok(response)
}

/// Returns the query's `path` as bytes, because a file name need not be UTF-8.
fn directory(uri: &Uri) -> Vec<u8> {
    let pairs = uri.query().unwrap_or_default().split('&');
    let path = pairs.filter_map(|pair| pair.strip_prefix("path=")).next().unwrap_or_default();
    percent_encoding::percent_decode_str(&path.replace('+', " ")).collect()
}

fn bytes(event: CreateEvent) -> io::Result<Option<Bytes>> {
    match event {
        CreateEvent::Data(data) => Ok(Some(data)),
        CreateEvent::Summary(done) if done.skipped_count > 0 => {
            let skipped = done.skipped.first().map(|first| first.reason.as_str()).unwrap_or_default();
            Err(io::Error::other(format!("cannot archive {} entries: {skipped}", done.skipped_count)))
        }
        CreateEvent::Entry(_) | CreateEvent::Progress(_) | CreateEvent::Summary(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_is_parsed_from_query() {
        for (uri, path) in [
            ("/export.zip", &b""[..]),
            ("/export.zip?path=a/b", b"a/b"),
            ("/export.zip?x=y&path=caf%E9+1", b"caf\xe9 1"),
        ] {
            assert_eq!(directory(&Uri::from_static(uri)), path);
        }
    }
}
