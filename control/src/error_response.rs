//! Renders the control plane's errors in the caller's protocol: gRPC, gRPC-web or plain HTTP.

use axum::body::Body;
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::{BufMut, Bytes, BytesMut};
use http::{
    HeaderMap, HeaderValue, Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
};
use http_body::Frame;
use podling_proto::{error::WireError, problem};
use tonic::Status;

/// First byte of a gRPC-web frame that carries trailers.
const WEB_TRAILERS: u8 = 0x80;

/// The protocol of a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WireProtocol {
    Grpc,
    GrpcWeb,
    /// gRPC-web with a base64 body.
    GrpcWebText,
    Http,
}

impl WireProtocol {
    /// Derives the protocol from the request's content type.
    pub fn of(headers: &HeaderMap) -> Self {
        let content_type = headers.get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
        if content_type.starts_with(b"application/grpc-web-text") {
            Self::GrpcWebText
        } else if content_type.starts_with(b"application/grpc-web") {
            Self::GrpcWeb
        } else if content_type.starts_with(b"application/grpc") {
            Self::Grpc
        } else {
            Self::Http
        }
    }

    fn content_type(self) -> &'static str {
        match self {
            Self::Grpc => "application/grpc",
            Self::GrpcWeb => "application/grpc-web+proto",
            Self::GrpcWebText => "application/grpc-web-text+proto",
            Self::Http => problem::CONTENT_TYPE,
        }
    }

    /// Returns a complete error response.
    pub fn error_response(self, error: WireError) -> Response<Body> {
        if self == Self::Http {
            let status = StatusCode::from_u16(problem::status(&error));
            return http_error_response(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), &error);
        }
        let mut response = Response::new(Body::empty());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type()));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        // In gRPC and gRPC-web a response without a message may carry its trailers as headers.
        headers.extend(trailers(error));
        response
    }

    /// Returns the last frame of a response that has begun. `None` for plain HTTP, where only an
    /// aborted body shows that it is incomplete.
    pub fn final_error_frame(self, error: WireError) -> Option<Frame<Bytes>> {
        match self {
            Self::Grpc => Some(Frame::trailers(trailers(error))),
            Self::GrpcWeb => Some(Frame::data(web_trailers(error))),
            Self::GrpcWebText => Some(Frame::data(BASE64.encode(web_trailers(error)).into())),
            Self::Http => None,
        }
    }
}

/// Returns a complete error response for plain HTTP. `status` may be more specific than the status
/// of the error's reason.
pub(crate) fn http_error_response(status: StatusCode, error: &WireError) -> Response<Body> {
    let mut response = Response::new(Body::from(problem::body_as(status.as_u16(), error).to_string()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(problem::CONTENT_TYPE));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(delay) = error.retry_delay() {
        headers.insert(RETRY_AFTER, delay.as_secs().max(1).into());
    }
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

fn trailers(error: WireError) -> HeaderMap {
    let mut headers = HeaderMap::new();
    // Fails only for a status with invalid metadata, which the control plane never sends. The code
    // is sent even then.
    if let Err(status) = Status::from(error).add_header(&mut headers) {
        headers.insert("grpc-status", HeaderValue::from(status.code() as i32));
    }
    headers
}

fn web_trailers(error: WireError) -> Bytes {
    let mut lines = BytesMut::new();
    for (name, value) in &trailers(error) {
        lines.extend_from_slice(name.as_str().as_bytes());
        lines.extend_from_slice(b": ");
        lines.extend_from_slice(value.as_bytes());
        lines.extend_from_slice(b"\r\n");
    }
    let mut frame = BytesMut::with_capacity(lines.len() + 5);
    frame.put_u8(WEB_TRAILERS);
    // Trailers have a few KiB at most, so the length fits.
    frame.put_u32(u32::try_from(lines.len()).unwrap_or(u32::MAX));
    frame.extend_from_slice(&lines);
    frame.freeze()
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use podling_proto::{error, v1::Reason};

    use super::*;

    fn unreachable_error() -> WireError {
        WireError::new(Reason::AgentUnreachable, "kein Weg über die Brücke").with("id", "x")
    }

    fn protocol(content_type: &'static str) -> WireProtocol {
        WireProtocol::of(&HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(content_type))]))
    }

    #[test]
    fn content_type_decides_the_protocol() {
        assert_eq!(protocol("application/grpc"), WireProtocol::Grpc);
        assert_eq!(protocol("application/grpc+proto"), WireProtocol::Grpc);
        assert_eq!(protocol("application/grpc-web+proto"), WireProtocol::GrpcWeb);
        assert_eq!(protocol("application/grpc-web-text"), WireProtocol::GrpcWebText);
        assert_eq!(protocol("application/json"), WireProtocol::Http);
        assert_eq!(WireProtocol::of(&HeaderMap::new()), WireProtocol::Http);
    }

    #[test]
    fn grpc_client_reads_reason_and_message() {
        for protocol in [WireProtocol::Grpc, WireProtocol::GrpcWeb] {
            let response = protocol.error_response(unreachable_error());
            assert_eq!(response.status(), 200);
            let status = Status::from_header_map(response.headers()).expect("status");
            assert_eq!(error::reason(&status), Some(Reason::AgentUnreachable));
            assert_eq!(status.message(), "kein Weg über die Brücke");
        }
        let frame = WireProtocol::Grpc.final_error_frame(unreachable_error()).expect("trailers");
        let status = Status::from_header_map(&frame.into_trailers().expect("trailers")).expect("status");
        assert_eq!(error::detail(&status, "id").as_deref(), Some("x"));
    }

    #[test]
    fn grpc_web_response_ends_with_trailer_frame() {
        let frame = WireProtocol::GrpcWeb
            .final_error_frame(unreachable_error())
            .and_then(|f| f.into_data().ok())
            .expect("data");
        assert_eq!(frame[0], 0x80);
        let length = u32::from_be_bytes([frame[1], frame[2], frame[3], frame[4]]) as usize;
        assert_eq!(length, frame.len() - 5);
        let text = String::from_utf8(frame[5..].to_vec()).expect("ascii");
        assert!(text.contains("grpc-status: 14\r\n") && text.ends_with("\r\n"), "{text}");
        let encoded =
            WireProtocol::GrpcWebText.final_error_frame(unreachable_error()).and_then(|f| f.into_data().ok());
        assert_eq!(BASE64.decode(encoded.expect("data")).expect("base64"), frame);
    }

    #[tokio::test]
    async fn plain_http_client_gets_problem_details() {
        let response = WireProtocol::Http.error_response(unreachable_error());
        assert_eq!(
            (response.status().as_u16(), &response.headers()[RETRY_AFTER]),
            (503, &HeaderValue::from(1))
        );
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
        let body = response.into_body().collect().await.expect("body").to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).expect("json");
        assert_eq!(body["reason"], "AGENT_UNREACHABLE");
        let missing =
            WireProtocol::Http.error_response(WireError::new(Reason::TokenMissing, "a token is needed"));
        assert_eq!(missing.headers()[WWW_AUTHENTICATE], "Bearer");
    }
}
