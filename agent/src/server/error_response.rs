//! Refusals in the caller's protocol: a gRPC status, the same for gRPC-web, or problem JSON.

use axum::{body::Body, response::Response};
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{CONTENT_TYPE, WWW_AUTHENTICATE},
};
use podling_proto::error::WireError;
use tonic::Status;

use crate::api::problem::problem;

const GRPC: &str = "application/grpc";
const GRPC_WEB: &str = "application/grpc-web";

/// Whether the caller speaks gRPC or gRPC-web.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    content_type(headers).starts_with(GRPC)
}

/// The refusal.
pub fn respond(headers: &HeaderMap, error: WireError) -> Response {
    let asked = content_type(headers);
    if !asked.starts_with(GRPC) {
        return challenge(&error);
    }
    // Trailers only: with no message before it, the status may stand in the headers, in gRPC and gRPC-web alike.
    let mut response = Status::from(error).into_http::<Body>();
    if asked.starts_with(GRPC_WEB) {
        let same = HeaderValue::from_str(asked).unwrap_or(HeaderValue::from_static(GRPC_WEB));
        response.headers_mut().insert(CONTENT_TYPE, same);
    }
    response
}

fn challenge(error: &WireError) -> Response {
    let mut response = problem(error);
    if response.status() == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

fn content_type(headers: &HeaderMap) -> &str {
    headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default()
}
