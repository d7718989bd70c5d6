//! Error responses in the caller's protocol: a status in gRPC and gRPC-web, and problem details
//! (RFC 9457) over plain HTTP, with the same reasons and metadata. Agent and control plane answer at
//! the same address, so both make their responses here.

use http::{
    HeaderMap, HeaderValue, Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
};
use serde_json::{Value, json};
use tonic::Status;

use crate::error::{self, WireError};

/// Content type of problem details.
pub const PROBLEM_CONTENT_TYPE: &str = "application/problem+json";

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
    /// Derives the protocol from the content type of a request or a response.
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
            Self::Http => PROBLEM_CONTENT_TYPE,
        }
    }

    /// Returns a complete error response.
    pub fn error_response<B: From<String>>(self, error: impl Into<WireError>) -> Response<B> {
        let error = error.into();
        let mut response = match self {
            // A response without a message may carry its trailers as headers.
            Self::Grpc | Self::GrpcWeb | Self::GrpcWebText => {
                let mut response = Response::new(B::from(String::new()));
                *response.headers_mut() = trailers(error);
                response
            }
            Self::Http => http_response(&error),
        };
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type()));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}

fn http_response<B: From<String>>(error: &WireError) -> Response<B> {
    let mut response = Response::new(B::from(problem(error).to_string()));
    *response.status_mut() = error.http_status();
    if let Some(delay) = error.retry_delay() {
        response.headers_mut().insert(RETRY_AFTER, delay.as_secs().max(1).into());
    }
    if error.http_status() == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// Returns the problem details. Clients branch on `reason` and `metadata`; `detail` is for display.
pub fn problem(error: &WireError) -> Value {
    let name = error::name(error.reason());
    json!({
        "type": format!("https://{}/problems/{}", error::DOMAIN, name.to_ascii_lowercase().replace('_', "-")),
        "title": name.to_ascii_lowercase().replace('_', " "),
        "status": error.http_status().as_u16(),
        "detail": error.message(),
        "reason": name,
        "metadata": error.metadata(),
    })
}

/// Returns the trailers that end a gRPC response with the error.
pub fn trailers(error: WireError) -> HeaderMap {
    let mut headers = HeaderMap::new();
    // Fails only for a status with invalid metadata, which an error never has. The code is sent even
    // then.
    if let Err(status) = Status::from(error).add_header(&mut headers) {
        headers.insert("grpc-status", HeaderValue::from(status.code() as i32));
    }
    headers
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use super::*;
    use crate::v1::Reason;

    fn reasons() -> impl Iterator<Item = Reason> {
        (1..1000).filter_map(|number| Reason::try_from(number).ok())
    }

    /// Reads the table of reasons in docs/api.md: code and status of each. A row without them has
    /// those of the row above.
    fn documented() -> BTreeMap<String, (String, u16)> {
        let docs = include_str!("../../docs/api.md");
        let table = docs.split("| gRPC code, HTTP status |").nth(1).expect("the table of reasons");
        let (mut documented, mut current) = (BTreeMap::new(), None);
        for row in table.lines().skip(2).take_while(|line| line.starts_with('|')) {
            let cells: Vec<_> = row.split('|').map(str::trim).collect();
            if let Some((code, status)) = cells[1].split_once(", ") {
                current = Some((code.to_owned(), status.parse().expect("a status")));
            }
            for reason in cells[2].split(", ") {
                documented.insert(reason.trim_matches('`').to_owned(), current.clone().expect("a code"));
            }
        }
        documented
    }

    #[test]
    fn every_reason_has_its_documented_code_and_status() {
        let documented = documented();
        for reason in reasons() {
            let name = error::name(reason);
            let response = WireProtocol::Http.error_response::<String>(WireError::new(reason, "why"));
            let code = format!("{:?}", error::code(reason));
            let (shown, status) = documented.get(name).unwrap_or_else(|| panic!("{name} is not in api.md"));
            assert_eq!(shown.replace('_', ""), code.to_ascii_uppercase(), "{name}");
            assert_eq!(response.status(), *status, "{name}");
        }
        assert_eq!(documented.len(), reasons().count(), "api.md has a reason that does not exist");
    }

    #[test]
    fn every_reason_is_the_same_problem_over_http() {
        for reason in reasons() {
            let error = WireError::new(reason, "why").with("id", "x");
            for (error, retried) in [
                (error.clone(), error::code(reason) == tonic::Code::Unavailable),
                (error.retry_after(Duration::from_secs(7)), true),
            ] {
                let response = WireProtocol::Http.error_response::<String>(error.clone());
                let headers = response.headers();
                assert_eq!(headers[CONTENT_TYPE], PROBLEM_CONTENT_TYPE);
                assert_eq!(headers.contains_key(RETRY_AFTER), retried, "{reason:?}");
                assert_eq!(headers.contains_key(WWW_AUTHENTICATE), response.status() == 401, "{reason:?}");
                let body: Value = serde_json::from_str(response.body()).expect("JSON");
                assert_eq!(body["reason"], error::name(reason));
                assert_eq!(body["status"], response.status().as_u16());
                assert_eq!((&body["detail"], &body["metadata"]["id"]), (&json!("why"), &json!("x")));
            }
        }
    }

    fn unreachable_error() -> WireError {
        WireError::new(Reason::AgentUnreachable, "kein Weg über die Brücke").with("id", "x")
    }

    #[test]
    fn problem_names_its_reason_in_three_ways() {
        let error = WireError::new(Reason::PathNotFound, "no such file").with("path", "a/b");
        let body = problem(&error);
        assert_eq!(body["type"], "https://podling.dev/problems/path-not-found");
        assert_eq!((&body["title"], &body["reason"]), (&json!("path not found"), &json!("PATH_NOT_FOUND")));
        let error = error.http(StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!((problem(&error)["status"].as_u64(), error.http_status().as_u16()), (Some(405), 405));
    }

    #[test]
    fn content_type_decides_the_protocol() {
        let protocol = |content_type: &'static str| {
            WireProtocol::of(&HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(content_type))]))
        };
        assert_eq!(protocol("application/grpc"), WireProtocol::Grpc);
        assert_eq!(protocol("application/grpc+proto"), WireProtocol::Grpc);
        assert_eq!(protocol("application/grpc-web+proto"), WireProtocol::GrpcWeb);
        assert_eq!(protocol("application/grpc-web-text"), WireProtocol::GrpcWebText);
        assert_eq!(protocol("application/json"), WireProtocol::Http);
        assert_eq!(WireProtocol::of(&HeaderMap::new()), WireProtocol::Http);
    }

    #[test]
    fn grpc_client_reads_reason_and_message() {
        for protocol in [WireProtocol::Grpc, WireProtocol::GrpcWeb, WireProtocol::GrpcWebText] {
            let response = protocol.error_response::<String>(unreachable_error());
            assert_eq!(response.status(), 200);
            let status = Status::from_header_map(response.headers()).expect("status");
            assert_eq!(error::reason(&status), Some(Reason::AgentUnreachable));
            assert_eq!(status.message(), "kein Weg über die Brücke");
        }
        let status = Status::from_header_map(&trailers(unreachable_error())).expect("status");
        assert_eq!(error::detail(&status, "id").as_deref(), Some("x"));
    }
}
