//! Filters headers in both directions. Removes hop-by-hop headers, the caller's secrets, and
//! response headers that would affect the gateway's whole origin.

use http::{
    HeaderMap, HeaderName, HeaderValue, Uri, Version,
    header::{
        ALT_SVC, AUTHORIZATION, CONNECTION, CONTENT_SECURITY_POLICY, COOKIE, EXPECT, FORWARDED, HOST, ORIGIN,
        PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, REFERER, SET_COOKIE, STRICT_TRANSPORT_SECURITY, TE, TRAILER,
        TRANSFER_ENCODING, UPGRADE, X_CONTENT_TYPE_OPTIONS,
    },
    request, response,
    uri::{Authority, Scheme},
};
use podling_proto::metadata;

use crate::{dial::AGENT_NAME, error_response::WireProtocol};

/// Headers of one connection (RFC 9110, 7.6.1).
const HOP_BY_HOP: [HeaderName; 9] = [
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    CONNECTION,
];
/// Secrets of the caller, and headers for the gateway itself.
const NOT_FOR_AGENTS: [HeaderName; 11] = [
    AUTHORIZATION,
    COOKIE,
    EXPECT,
    FORWARDED,
    HOST,
    ORIGIN,
    REFERER,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-real-ip"),
    HeaderName::from_static(metadata::WORKSPACE),
    HeaderName::from_static(metadata::WAKE),
];
/// Headers that would apply to the gateway's whole origin, which serves other workspaces too.
const NOT_FOR_CALLERS: [HeaderName; 9] = [
    ALT_SVC,
    SET_COOKIE,
    STRICT_TRANSPORT_SECURITY,
    HeaderName::from_static("accept-ch"),
    HeaderName::from_static("clear-site-data"),
    HeaderName::from_static("nel"),
    HeaderName::from_static("report-to"),
    HeaderName::from_static("reporting-endpoints"),
    HeaderName::from_static("service-worker-allowed"),
];

/// Turns a caller's request into the gateway's request to an agent.
pub(super) fn to_agent(parts: &mut request::Parts, protocol: WireProtocol, authorization: HeaderValue) {
    strip(&mut parts.headers, &NOT_FOR_AGENTS);
    parts.headers.insert(AUTHORIZATION, authorization);
    if protocol == WireProtocol::Grpc {
        parts.headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    uri.scheme = Some(Scheme::HTTPS);
    uri.authority = Some(Authority::from_static(AGENT_NAME));
    // The target of `OPTIONS *` is not valid with an authority. All other targets are paths.
    uri.path_and_query = uri.path_and_query.filter(|path| path.as_str().starts_with('/'));
    parts.uri = Uri::from_parts(uri).unwrap_or_default();
    parts.version = Version::HTTP_2;
}

/// Turns an agent's response into the gateway's response.
pub(super) fn to_caller(parts: &mut response::Parts, protocol: WireProtocol) {
    strip(&mut parts.headers, &NOT_FOR_CALLERS);
    // Only the gateway decides which pages may read responses.
    let cors: Vec<_> =
        parts.headers.keys().filter(|name| name.as_str().starts_with("access-control-")).cloned().collect();
    for name in cors {
        parts.headers.remove(name);
    }
    if protocol == WireProtocol::Http {
        // A workspace's file must never run as a page of the gateway's origin.
        parts.headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
        parts.headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    }
    parts.version = Version::default();
}

fn strip(headers: &mut HeaderMap, also: &[HeaderName]) {
    // The Connection header names further headers of this hop.
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP).chain(also) {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};

    use super::*;

    #[test]
    fn agent_receives_no_secrets_of_the_caller() {
        let request = Request::put("http://podling.example:7411/files/a?x=1")
            .header("authorization", "Bearer user")
            .header("cookie", "session=1")
            .header("podling-workspace", "abc")
            .header("podling-wake", "never")
            .header("x-forwarded-for", "192.0.2.1")
            .header("connection", "close, X-Secret-Hop")
            .header("x-secret-hop", "1")
            .header("transfer-encoding", "chunked")
            .header("te", "gzip")
            .header("host", "podling.example")
            .header("content-type", "text/plain")
            .header("grpc-timeout", "5S")
            .header("x-my-metadata", "kept");
        let mut parts = request.body(()).expect("request").into_parts().0;
        to_agent(&mut parts, WireProtocol::Http, HeaderValue::from_static("Bearer agent"));
        let mut names: Vec<_> = parts.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["authorization", "content-type", "grpc-timeout", "x-my-metadata"]);
        assert_eq!(parts.headers["authorization"], "Bearer agent");
        assert_eq!(parts.uri.to_string(), "https://podling-agent/files/a?x=1");
        to_agent(&mut parts, WireProtocol::Grpc, HeaderValue::from_static("Bearer agent"));
        assert_eq!(parts.headers["te"], "trailers");
    }

    #[test]
    fn agent_cannot_set_headers_of_the_gateways_origin() {
        let response = Response::builder()
            .header("set-cookie", "a=b")
            .header("access-control-allow-origin", "*")
            .header("alt-svc", "h3=\":443\"")
            .header("nel", "{\"report_to\":\"theirs\"}")
            .header("report-to", "{\"group\":\"theirs\"}")
            .header("service-worker-allowed", "/")
            .header("content-type", "text/html")
            .header("etag", "1");
        let mut parts = response.body(()).expect("response").into_parts().0;
        to_caller(&mut parts, WireProtocol::Http);
        let mut names: Vec<_> = parts.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-security-policy", "content-type", "etag", "x-content-type-options"]);
    }
}
