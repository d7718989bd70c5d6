//! The control plane's errors over plain HTTP: problem details (RFC 9457) with the same reasons and
//! metadata as over gRPC.

use serde_json::{Value, json};
use tonic::Code;

use crate::error::{self, WireError};

/// Content type of a problem body.
pub const CONTENT_TYPE: &str = "application/problem+json";

/// Returns the HTTP status of an error. Follows the mapping of google.rpc.Code, except that
/// FAILED_PRECONDITION is 409.
pub fn status(error: &WireError) -> u16 {
    match error::code(error.reason()) {
        Code::InvalidArgument | Code::OutOfRange => 400,
        Code::Unauthenticated => 401,
        Code::PermissionDenied => 403,
        Code::NotFound => 404,
        Code::AlreadyExists | Code::Aborted | Code::FailedPrecondition => 409,
        Code::ResourceExhausted => 429,
        Code::Unimplemented => 501,
        Code::Unavailable => 503,
        _ => 500,
    }
}

/// Returns the JSON body. Clients branch on `reason` and `metadata`; `detail` is for display.
pub fn body(error: &WireError) -> Value {
    body_as(status(error), error)
}

/// Returns the JSON body with a more specific HTTP status, such as 405 or 413.
pub fn body_as(status: u16, error: &WireError) -> Value {
    let name = error::name(error.reason());
    json!({
        "type": format!("https://{}/problems/{}", error::DOMAIN, name.to_ascii_lowercase().replace('_', "-")),
        "title": name.to_ascii_lowercase().replace('_', " "),
        "status": status,
        "detail": error.message(),
        "reason": name,
        "metadata": error.metadata(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::Reason;

    #[test]
    fn http_problem_carries_same_reason() {
        let error = WireError::new(Reason::PathNotFound, "no such file").with("path", "a/b");
        let body = body(&error);
        assert_eq!((status(&error), body["reason"].as_str()), (404, Some("PATH_NOT_FOUND")));
        assert_eq!(body["metadata"]["path"], "a/b");
        assert_eq!(body["title"], "path not found");
    }
}
