//! Downloads with ranges, and uploads, over plain HTTP for browsers and curl. The router has
//! authorized the calls.
//!
//! `GET` and `HEAD /files/<path>` support one range, ETag, Last-Modified, If-None-Match and
//! If-Range. The response is always an attachment, because a browser must not run workspace content
//! in the gateway's origin.
//!
//! `PUT /files/<path>` writes like the gRPC call and creates missing parent directories. It checks
//! the content against `X-Podling-SHA256` (hexadecimal) or `Digest`, `Content-Digest` or
//! `Repr-Digest` (sha-256, base64) if one is given. With `If-None-Match: *` an existing file is an
//! error.

use std::time::{Duration, UNIX_EPOCH};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
    routing::get,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::TryStreamExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request::Parts};
use http_body_util::BodyExt;
use podling_proto::error_response::WireProtocol;

use super::parse;
use crate::{
    files::{FileEntry, FileError, Files, RelPath, WriteOptions},
    util::hex,
};

/// Path prefix of these routes.
const PREFIX: &str = "/files/";
const SHA256: HeaderName = HeaderName::from_static("x-podling-sha256");
/// Headers whose value is `sha-256=<base64>`. The newer ones put colons around the base64.
const DIGESTS: [&str; 3] = ["content-digest", "repr-digest", "digest"];

/// First second of the year 10000. Later times have no HTTP date, and httpdate panics.
const LAST_HTTP_DATE: Duration = Duration::from_secs(253_402_300_800);

/// Returns the routes below `/files/`.
pub fn router(files: Files) -> Router {
    Router::new().route("/files/{*path}", get(download).put(upload)).with_state(files)
}

async fn download(State(files): State<Files>, request: Request) -> Response {
    respond(serve_file(files, &request.into_parts().0).await)
}

async fn upload(State(files): State<Files>, request: Request) -> Response {
    respond(store_upload(files, request).await)
}

fn respond(result: Result<Response, FileError>) -> Response {
    result.unwrap_or_else(|error| WireProtocol::Http.error_response(error))
}

async fn serve_file(files: Files, request: &Parts) -> Result<Response, FileError> {
    let reading = files.read(path(request)?).await?;
    let (headers, size) = (&request.headers, reading.entry.size);
    let mut response = Response::new(Body::empty());
    set_entity_headers(&reading.entry, response.headers_mut());
    let tag = etag(&reading.entry);
    if text(headers, &header::IF_NONE_MATCH)
        .is_some_and(|tags| tags == "*" || tags.split(',').any(|t| t.trim() == tag))
    {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(response);
    }
    // Ranges of two versions do not form a valid file. Another version is therefore sent whole.
    let same_version = text(headers, &header::IF_RANGE).is_none_or(|version| version == tag);
    let requested = text(headers, &header::RANGE)
        .filter(|_| same_version)
        .map_or(RequestedRange::Whole, |range| parse_range(range, size));
    let reading = match requested {
        RequestedRange::Whole => reading,
        RequestedRange::Part { offset, length } => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            let range = format!("bytes {offset}-{}/{size}", offset + length - 1);
            response.headers_mut().insert(header::CONTENT_RANGE, value(range));
            reading.range(offset, Some(length))?
        }
        RequestedRange::Unsatisfiable => {
            let path = path(request)?.to_string();
            let error = FileError::BadOffset { path, offset: size, size };
            let mut response: Response = WireProtocol::Http.error_response(error);
            response.headers_mut().insert(header::CONTENT_RANGE, value(format!("bytes */{size}")));
            return Ok(response);
        }
    };
    response.headers_mut().insert(header::CONTENT_LENGTH, (reading.end - reading.start).into());
    if request.method != Method::HEAD {
        *response.body_mut() = Body::from_stream(reading.pieces().map_err(std::io::Error::other));
    }
    Ok(response)
}

async fn store_upload(files: Files, request: Request) -> Result<Response, FileError> {
    let (request, mut body) = request.into_parts();
    let path = path(&request)?;
    let headers = &request.headers;
    if headers.contains_key(header::CONTENT_RANGE) {
        return Err(FileError::BadField {
            field: "Content-Range",
            allowed: "absent, because a file is written as a whole",
        });
    }
    let options = WriteOptions {
        sha256: digest(headers)?,
        create_only: text(headers, &header::IF_NONE_MATCH) == Some("*"),
        make_parents: true,
        ..WriteOptions::default()
    };
    let mut feed = files.write(path, options).await?;
    while let Some(frame) = body.frame().await {
        // The client disconnected in the middle. The old file stays, and usually no client reads
        // this answer. It must not count as a fault of the agent.
        let frame = frame.map_err(|_| FileError::BadField { field: "body", allowed: "sent completely" })?;
        if let Ok(data) = frame.into_data() {
            feed.push(data).await?;
        }
    }
    let written = feed.finish().await?;
    let mut response =
        if written.created { StatusCode::CREATED } else { StatusCode::NO_CONTENT }.into_response();
    let headers = response.headers_mut();
    headers.insert(header::ETAG, value(etag(&written.entry)));
    headers.insert(SHA256, value(hex(&written.sha256)));
    Ok(response)
}

/// Returns the decoded path, which need not be UTF-8.
fn path(request: &Parts) -> Result<RelPath, FileError> {
    let encoded = request.uri.path().strip_prefix(PREFIX).unwrap_or_default();
    let decoded: Vec<u8> = percent_encoding::percent_decode_str(encoded).collect();
    parse(&decoded)
}

fn set_entity_headers(entry: &FileEntry, headers: &mut HeaderMap) {
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::ETAG, value(etag(entry)));
    if entry.modified.duration_since(UNIX_EPOCH).is_ok_and(|since| since < LAST_HTTP_DATE) {
        headers.insert(header::LAST_MODIFIED, value(httpdate::fmt_http_date(entry.modified)));
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type(&entry.name)));
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
}

/// Returns an entity tag that changes with the size, the modification time and the inode. A write
/// by a client replaces the inode.
fn etag(entry: &FileEntry) -> String {
    let time = entry.modified.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_nanos();
    format!("\"{:x}-{time:x}-{:x}\"", entry.size, entry.ino)
}

/// Returns the content type for a file extension. None of the types makes a browser run the
/// content.
fn content_type(name: &[u8]) -> &'static str {
    let extension = name.iter().rposition(|b| *b == b'.').map_or(&[][..], |at| &name[at + 1..]);
    match extension.to_ascii_lowercase().as_slice() {
        b"txt" | b"log" | b"md" | b"py" | b"rs" | b"toml" => "text/plain; charset=utf-8",
        b"csv" => "text/csv; charset=utf-8",
        b"json" | b"ipynb" => "application/json",
        b"zip" => "application/zip",
        b"pdf" => "application/pdf",
        b"png" => "image/png",
        b"jpg" | b"jpeg" => "image/jpeg",
        _ => "application/octet-stream",
    }
}

fn digest(headers: &HeaderMap) -> Result<Option<[u8; 32]>, FileError> {
    if let Some(hex) = headers.get(SHA256) {
        let bad = FileError::BadField { field: "X-Podling-SHA256", allowed: "64 hexadecimal digits" };
        return hex.to_str().ok().and_then(unhex).map(Some).ok_or(bad);
    }
    for name in DIGESTS {
        let Some(digests) = headers.get(name).and_then(|v| v.to_str().ok()) else { continue };
        // Ignores digests of other algorithms.
        let Some(ours) = digests.split(',').find_map(|d| strip_ignoring_case(d.trim(), "sha-256=")) else {
            continue;
        };
        let bad = FileError::BadField { field: "Digest", allowed: "sha-256=<base64 of 32 bytes>" };
        let bytes = STANDARD.decode(ours.trim_matches(':')).ok().and_then(|bytes| bytes.try_into().ok());
        return bytes.map(Some).ok_or(bad);
    }
    Ok(None)
}

fn strip_ignoring_case<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    text.get(..prefix.len()).filter(|head| head.eq_ignore_ascii_case(prefix)).map(|_| &text[prefix.len()..])
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
    let bytes: Vec<u8> =
        digits?.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect();
    (text.len() == 64).then(|| bytes.try_into().ok())?
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Converts text of printable ASCII characters to a header value.
fn value(text: String) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// The part of a file that a Range header selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RequestedRange {
    Whole,
    /// `length` is at least 1, and the part lies inside the file.
    Part {
        offset: u64,
        length: u64,
    },
    /// The range lies outside the file.
    Unsatisfiable,
}

fn parse_range(header: &str, size: u64) -> RequestedRange {
    let Some((first, last)) = header.trim().strip_prefix("bytes=").and_then(|range| range.split_once('-'))
    else {
        return RequestedRange::Whole;
    };
    match (first.trim(), last.trim()) {
        ("", last) => match number(last) {
            None => RequestedRange::Whole,
            Some(0) => RequestedRange::Unsatisfiable,
            Some(_) if size == 0 => RequestedRange::Unsatisfiable,
            Some(tail) => {
                let length = tail.min(size);
                RequestedRange::Part { offset: size - length, length }
            }
        },
        (first, last) => match (number(first), number(last)) {
            (None, _) => RequestedRange::Whole,
            (Some(_), None) if !last.is_empty() => RequestedRange::Whole,
            (Some(first), Some(last)) if last < first => RequestedRange::Whole,
            (Some(first), _) if first >= size => RequestedRange::Unsatisfiable,
            (Some(first), last) => {
                let end = last.map_or(size, |last| last.saturating_add(1).min(size));
                RequestedRange::Part { offset: first, length: end - first }
            }
        },
    }
}

fn number(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::files::FileKind;

    #[test]
    fn last_modified_is_omitted_without_http_date() {
        let (second, far) = (Duration::from_secs(1), Duration::from_secs(i64::MAX as u64));
        for (modified, dated) in [
            (UNIX_EPOCH, true),
            (UNIX_EPOCH + LAST_HTTP_DATE - second, true),
            (UNIX_EPOCH + LAST_HTTP_DATE, false),
            (UNIX_EPOCH + far, false),
            (UNIX_EPOCH - second, false),
            (UNIX_EPOCH - far, false),
        ] {
            let entry = FileEntry {
                name: b"a".to_vec(),
                kind: FileKind::File,
                size: 1,
                mode: 0o644,
                modified,
                link_target: Vec::new(),
                device: 1,
                ino: 1,
            };
            let mut headers = HeaderMap::new();
            set_entity_headers(&entry, &mut headers);
            assert_eq!(headers.contains_key(header::LAST_MODIFIED), dated, "{modified:?}");
        }
    }

    #[test]
    fn ranges_are_parsed_as_in_rfc_9110() {
        let part = |offset, length| RequestedRange::Part { offset, length };
        assert_eq!(parse_range("bytes=0-499", 10_000), part(0, 500));
        assert_eq!(parse_range("bytes=9500-", 10_000), part(9_500, 500));
        assert_eq!(parse_range("bytes=-500", 10_000), part(9_500, 500));
        assert_eq!(parse_range("bytes=-20000", 10_000), part(0, 10_000));
        assert_eq!(parse_range("bytes=9999-20000", 10_000), part(9_999, 1));
        assert_eq!(parse_range("bytes=10000-", 10_000), RequestedRange::Unsatisfiable);
        assert_eq!(parse_range("bytes=-0", 10_000), RequestedRange::Unsatisfiable);
        assert_eq!(parse_range("bytes=0-0", 0), RequestedRange::Unsatisfiable);
        for whole in ["bytes=5-1", "bytes=1-2,4-5", "lines=1-2", "bytes=a-b", "bytes=-", "bytes=+1-2", ""] {
            assert_eq!(parse_range(whole, 10_000), RequestedRange::Whole, "{whole}");
        }
    }

    proptest! {
        #[test]
        fn parsed_range_lies_inside_file(header in "bytes=[0-9]{0,20}-[0-9]{0,20}", size: u64) {
            if let RequestedRange::Part { offset, length } = parse_range(&header, size) {
                prop_assert!(length > 0 && offset.checked_add(length).is_some_and(|end| end <= size));
            }
        }
    }
}
