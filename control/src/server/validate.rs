//! Rejects requests that the control plane and a proxy or an agent could interpret differently.
//!
//! The length of a request needs no check. If a request has both `Content-Length` and chunked
//! encoding, hyper uses the chunked encoding and closes the connection afterwards.
use http::{HeaderName, Method, header::AUTHORIZATION, request};
use podling_proto::{
    error::{Reason, WireError},
    metadata,
};

use super::limits::MAX_HEADER_BYTES;

/// Bytes that HTTP/2 counts for each header beyond its name and value (RFC 9113, 6.5.2).
const HEADER_OVERHEAD: usize = 32;
/// Headers that may occur only once. Of two values, one program might use the first and another
/// program the last.
const ONCE: [HeaderName; 3] =
    [AUTHORIZATION, HeaderName::from_static(metadata::WORKSPACE), HeaderName::from_static(metadata::WAKE)];

/// Fails with `BAD_FIELD` if a header of [`ONCE`] is repeated, the headers are too large, or the
/// method is CONNECT.
pub(super) fn check_request(parts: &request::Parts) -> Result<(), WireError> {
    let bad =
        |field: &str, message: String| Err(WireError::new(Reason::BadField, message).with("field", field));
    // HTTP/2 has enforced this limit already; HTTP/1 only bounds its buffer.
    let bytes: usize =
        parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + HEADER_OVERHEAD).sum();
    if bytes > MAX_HEADER_BYTES as usize {
        return bad(
            "headers",
            format!("the headers have {bytes} bytes; at most {MAX_HEADER_BYTES} are allowed"),
        );
    }
    if let Some(name) = ONCE.iter().find(|name| parts.headers.get_all(*name).iter().nth(1).is_some()) {
        return bad(name.as_str(), format!("the header {name} occurs more than once"));
    }
    if parts.method == Method::CONNECT {
        return bad("method", "the method CONNECT is not supported".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use http::{Request, request::Builder};

    use super::*;

    fn rejected_field(request: Builder) -> Option<String> {
        let parts = request.body(()).unwrap().into_parts().0;
        check_request(&parts).err().and_then(|error| error.metadata().get("field").cloned())
    }

    #[test]
    fn ambiguous_request_is_rejected() {
        let request =
            || Request::put("/files/a").header("authorization", "Bearer x").header("te", "trailers");
        assert_eq!(rejected_field(request()), None);
        assert_eq!(
            rejected_field(request().header("authorization", "Bearer y")).as_deref(),
            Some("authorization")
        );
        let twice = request().header("podling-workspace", "a").header("podling-workspace", "b");
        assert_eq!(rejected_field(twice).as_deref(), Some("podling-workspace"));
        assert_eq!(rejected_field(request().method("CONNECT")).as_deref(), Some("method"));
        assert_eq!(rejected_field(request().header("x", "y".repeat(32 * 1024))).as_deref(), Some("headers"));
    }
}
