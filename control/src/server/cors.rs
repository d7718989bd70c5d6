//! CORS headers. Pages of the configured origins may send calls with tokens, but never with
//! cookies.

use std::time::Duration;

use http::{
    HeaderName, HeaderValue, Method,
    header::{
        AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH, LOCATION,
        RANGE, RETRY_AFTER,
    },
};
use podling_proto::metadata;
use tower_http::cors::{AllowOrigin, CorsLayer};

/// Time for which a browser may cache a preflight response.
const MAX_AGE: Duration = Duration::from_secs(60 * 60);

/// Returns the layer that answers preflight requests and adds CORS headers. Preflights carry no
/// token, so the layer must wrap the router that authenticates.
pub fn cors(origins: &[String]) -> CorsLayer {
    // The configuration has validated the origins, so each is a valid header value.
    let origins = origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok());
    CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        .allow_headers([
            AUTHORIZATION,
            CONTENT_TYPE,
            IF_MATCH,
            IF_NONE_MATCH,
            RANGE,
            HeaderName::from_static("grpc-timeout"),
            HeaderName::from_static("x-grpc-web"),
            HeaderName::from_static("x-user-agent"),
            HeaderName::from_static(metadata::WORKSPACE),
            HeaderName::from_static(metadata::WAKE),
        ])
        .expose_headers([
            CONTENT_LENGTH,
            CONTENT_RANGE,
            ETAG,
            LOCATION,
            RETRY_AFTER,
            HeaderName::from_static("grpc-status"),
            HeaderName::from_static("grpc-message"),
            HeaderName::from_static("grpc-status-details-bin"),
        ])
        .max_age(MAX_AGE)
}
