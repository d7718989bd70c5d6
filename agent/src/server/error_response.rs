//! Error responses in the caller's protocol: a gRPC or gRPC-web status, or problem JSON.

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

/// Returns whether the caller speaks gRPC or gRPC-web.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    content_type(headers).starts_with(GRPC)
}

pub fn respond(headers: &HeaderMap, error: WireError) -> Response {
    let content_type = content_type(headers);
    if !content_type.starts_with(GRPC) {
        return challenge(&error);
    }
    // gRPC and gRPC-web allow a response without a message to carry its status in the headers.
    let mut response = Status::from(error).into_http::<Body>();
    if content_type.starts_with(GRPC_WEB) {
        let same = HeaderValue::from_str(content_type).unwrap_or(HeaderValue::from_static(GRPC_WEB));
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
