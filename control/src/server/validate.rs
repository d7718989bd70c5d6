//! Whether a request has a form that means one thing only. Whatever could be read in two ways, here and behind us, is refused.
//!
//! Where a request ends is no question here: of two lengths hyper takes the chunks and closes the connection behind them.
//!
//! Must not authenticated_guard who calls or what is called.

use http::{HeaderName, Method, header::AUTHORIZATION, request};
use podling_proto::{
    error::{Reason, WireError},
    metadata,
};

use super::limits::MAX_HEADER_BYTES;

/// What HTTP/2 counts for a header beside its name and value (RFC 9113, 6.5.2).
const HEADER_OVERHEAD: usize = 32;
/// Said once or not at all: of two, one program may believe the first and the next the last.
const ONCE: [HeaderName; 3] =
    [AUTHORIZATION, HeaderName::from_static(metadata::WORKSPACE), HeaderName::from_static(metadata::WAKE)];

/// Refuses a request whose form is not good.
pub(super) fn check_request(parts: &request::Parts) -> Result<(), WireError> {
    let bad =
        |field: &str, message: String| Err(WireError::new(Reason::BadField, message).with("field", field));
    // HTTP/2 has counted already; HTTP/1 only knows how much it reads at once.
    let bytes: usize =
        parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + HEADER_OVERHEAD).sum();
    if bytes > MAX_HEADER_BYTES as usize {
        return bad(
            "headers",
            format!("the headers have {bytes} bytes; at most {MAX_HEADER_BYTES} are taken"),
        );
    }
    if let Some(name) = ONCE.iter().find(|name| parts.headers.get_all(*name).iter().nth(1).is_some()) {
        return bad(name.as_str(), format!("{name} is there more than once"));
    }
    if parts.method == Method::CONNECT {
        return bad("method", "there are no tunnels here (CONNECT)".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use http::{Request, request::Builder};

    use super::*;

    fn refused(request: Builder) -> Option<String> {
        let parts = request.body(()).unwrap().into_parts().0;
        check_request(&parts).err().and_then(|error| error.metadata().get("field").cloned())
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let request =
            || Request::put("/files/a").header("authorization", "Bearer x").header("te", "trailers");
        assert_eq!(refused(request()), None);
        assert_eq!(refused(request().header("authorization", "Bearer y")).as_deref(), Some("authorization"));
        let twice = request().header("podling-workspace", "a").header("podling-workspace", "b");
        assert_eq!(refused(twice).as_deref(), Some("podling-workspace"));
        assert_eq!(refused(request().method("CONNECT")).as_deref(), Some("method"));
        assert_eq!(refused(request().header("x", "y".repeat(32 * 1024))).as_deref(), Some("headers"));
    }
}
