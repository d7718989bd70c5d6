//! Exports over plain HTTP, for browsers and curl. The router has authorized the calls.
//!
//! `GET /export.zip?path=<directory>` returns the directory (default: the root) as a zip, without
//! ignore rules. If an entry could not be read, the response is aborted before its end. Otherwise a
//! client would take an incomplete archive for a complete one.

use std::io;

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::Response,
    routing::get,
};
use bytes::Bytes;
use futures_util::TryStreamExt;
use http::{HeaderValue, Uri, header};
use podling_proto::error::WireError;

use super::{files::parse, problem::problem};
use crate::archive::{ArchiveError, Archives, CreateEvent, CreateOptions};

pub fn router(archives: Archives) -> Router {
    Router::new().route("/export.zip", get(download)).with_state(archives)
}

async fn download(State(archives): State<Archives>, request: Request) -> Response {
    send(archives, request.uri()).await.unwrap_or_else(|error| problem(&WireError::from(error)))
}

async fn send(archives: Archives, uri: &Uri) -> Result<Response, ArchiveError> {
    let events = archives.create(parse(&directory(uri))?, CreateOptions::default()).await?;
    let body = events.map_err(io::Error::other).try_filter_map(|event| async { bytes(event) });
    let mut response = Response::new(Body::from_stream(body));
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
