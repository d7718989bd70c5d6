//! Reads the message of an RPC from an HTTP request: from its path, and from its query or its body.
//! Strict: what is unknown, repeated or too long is an error that names the field.

use std::collections::HashMap;

use axum::extract::{FromRequestParts, Path, Query, Request};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header::CONTENT_TYPE, request::Parts};
use http_body::Body;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use podling_proto::{
    error::{Reason, WireError},
    json::{self, JsonError, MessageBuilder},
};
use prost::{Message, Name};
use tokio::time::timeout;

use super::operation::FieldSource;
use crate::server::{BODY_TIMEOUT, MAX_MESSAGE_BYTES, body_timeout, too_large};

/// Reads the message of an RPC. An empty body is read as `{}`.
pub(super) async fn read_message<M: Message + Name + Default>(
    request: Request,
    source: FieldSource,
) -> Result<M, WireError> {
    let (mut parts, body) = request.into_parts();
    let mut message = MessageBuilder::default();
    for (name, text) in path_fields(&mut parts).await? {
        message.set_text(&name, &text).map_err(|error| in_text("path", &error))?;
    }
    match source {
        FieldSource::Query => {
            for (name, text) in query_fields(&parts)? {
                message.set_text(&name, &text).map_err(|error| in_text("query", &error))?;
            }
        }
        FieldSource::Body => {
            let json = json::parse(&read_body(&parts, body).await?).map_err(|error| in_body(&error))?;
            message.set_fields(&json).map_err(|error| in_body(&error))?;
        }
        FieldSource::BodyIs(field) => {
            let json = json::parse(&read_body(&parts, body).await?).map_err(|error| in_body(&error))?;
            message.set_field(field, &json).map_err(|error| in_body(&error))?;
        }
    }
    message.build().map_err(|error| in_body(&error))
}

async fn path_fields(parts: &mut Parts) -> Result<HashMap<String, String>, WireError> {
    let Path(fields) =
        Path::from_request_parts(parts, &()).await.map_err(|error| bad("path", &error.body_text()))?;
    Ok(fields)
}

fn query_fields(parts: &Parts) -> Result<Vec<(String, String)>, WireError> {
    let Query(fields) = Query::try_from_uri(&parts.uri).map_err(|error| bad("query", &error.body_text()))?;
    Ok(fields)
}

async fn read_body(parts: &Parts, body: axum::body::Body) -> Result<Bytes, WireError> {
    let too_long = || too_large(MAX_MESSAGE_BYTES, "the body");
    // Refused before any of it is read.
    if body.size_hint().lower() > MAX_MESSAGE_BYTES as u64 {
        return Err(too_long());
    }
    let collected = timeout(BODY_TIMEOUT, Limited::new(body, MAX_MESSAGE_BYTES).collect()).await;
    let collected = collected.map_err(|_| body_timeout())?.map_err(|error| {
        if error.is::<LengthLimitError>() {
            too_long()
        } else {
            bad("body", "the connection ended before the whole body arrived")
        }
    })?;
    let bytes = collected.to_bytes();
    if bytes.is_empty() {
        return Ok(Bytes::from_static(b"{}"));
    }
    if !is_json(&parts.headers) {
        let message = "the body must be JSON and have the header content-type: application/json";
        let error = WireError::new(Reason::BadField, message).with("field", CONTENT_TYPE);
        return Err(error.http(StatusCode::UNSUPPORTED_MEDIA_TYPE));
    }
    Ok(bytes)
}

fn is_json(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default();
    media_type.trim().eq_ignore_ascii_case("application/json")
}

fn in_text(place: &str, error: &JsonError) -> WireError {
    bad(place, &format!("{}: {}", error.field(), error.problem()))
}

fn in_body(error: &JsonError) -> WireError {
    let field = Some(error.field()).filter(|field| !field.is_empty());
    bad(field.as_deref().unwrap_or("body"), error.problem())
}

fn bad(field: &str, problem: &str) -> WireError {
    WireError::new(Reason::BadField, format!("{field}: {problem}")).with("field", field)
}
