//! Reads requests and writes scalars: strict extractors, times, durations and enum values.
//!
//! The extractors reject unknown and repeated fields with an error that names the field, and bodies
//! that are too long.

use std::{borrow::Cow, time::Duration};

use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use http::{HeaderMap, StatusCode, header::CONTENT_TYPE, request::Parts};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use podling_proto::error::{Reason, WireError};
use prost_types::Timestamp;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeOwned, Error, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor},
};

use super::ProblemResponse;

/// Longest body in bytes. A longer one is rejected with 413. The longest valid body contains an
/// environment of 16 KiB, in which escapes (`\u001b`) may take six bytes for one.
const MAX_BODY_BYTES: usize = 128 * 1024;
/// Range of RFC 3339 times (years 1 to 9999), in seconds since 1970. Times that an agent reports
/// are clamped to this range.
const SECONDS: (i64, i64) = (-62_135_596_800, 253_402_300_799);
/// Prefixes of enum values that contain a `_` themselves. All other prefixes end at the first `_`.
const LONG_PREFIXES: [&str; 7] = [
    "ACTIVITY_LEVEL_",
    "AGENT_CONNECTION_",
    "COMMAND_FAILURE_KIND_",
    "STATE_REASON_CODE_",
    "WAIT_REASON_",
    "DECLINE_REASON_",
    "SLEEP_CAUSE_",
];

/// Extracts a JSON body. An empty body is read as `{}`.
#[derive(Debug)]
pub(crate) struct JsonBody<T>(pub(crate) T);

#[derive(Debug)]
pub(crate) struct QueryParams<T>(pub(crate) T);

/// Extracts the variable part of the path.
#[derive(Debug)]
pub(crate) struct PathParam(pub(crate) String);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = ProblemResponse;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ProblemResponse> {
        let (parts, body) = request.into_parts();
        let collected = Limited::new(body, MAX_BODY_BYTES).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() {
                too_long()
            } else {
                bad("body", "the connection ended before the whole body arrived").into()
            }
        })?;
        let bytes = collected.to_bytes();
        if bytes.is_empty() {
            return parse(b"{}").map(Self);
        }
        if !is_json(&parts.headers) {
            let message = "the body must be JSON and have the header content-type: application/json";
            let error = WireError::new(Reason::BadField, message).with("field", CONTENT_TYPE);
            return Err(ProblemResponse::with_status(StatusCode::UNSUPPORTED_MEDIA_TYPE, error));
        }
        parse(&bytes).map(Self)
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for QueryParams<T> {
    type Rejection = ProblemResponse;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ProblemResponse> {
        match axum::extract::Query::try_from_uri(&parts.uri) {
            Ok(axum::extract::Query(query)) => Ok(Self(query)),
            Err(error) => Err(bad("query", &error.body_text()).into()),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for PathParam {
    type Rejection = ProblemResponse;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ProblemResponse> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(text)) => Ok(Self(text)),
            Err(error) => Err(bad("path", &error.body_text()).into()),
        }
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default();
    media_type.trim().eq_ignore_ascii_case("application/json")
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ProblemResponse> {
    deserialize::<WithoutArrays>(bytes)?;
    deserialize(bytes)
}

fn deserialize<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ProblemResponse> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let parsed = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        // The path of a syntax error says nothing about the field. The path "." is the root, which
        // means that a field is missing.
        let field = Some(error.path().to_string()).filter(|path| error.inner().is_data() && path != ".");
        bad(field.as_deref().unwrap_or("body"), &error.inner().to_string())
    })?;
    json.end().map_err(|error| bad("body", &error.to_string()))?;
    Ok(parsed)
}

/// A JSON value without arrays. Serde accepts an array in place of any object, with its fields in
/// order, so that `[]` would be a body without fields. No body of the API has an array.
struct WithoutArrays;

impl<'de> Deserialize<'de> for WithoutArrays {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(WithoutArraysVisitor)
    }
}

struct WithoutArraysVisitor;

impl<'de> Visitor<'de> for WithoutArraysVisitor {
    type Value = WithoutArrays;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object or a scalar")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WithoutArrays, A::Error> {
        while map.next_entry::<String, WithoutArrays>()?.is_some() {}
        Ok(WithoutArrays)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<WithoutArrays, A::Error> {
        // Read to its end, so that the syntax of the whole body is checked first.
        while array.next_element::<IgnoredAny>()?.is_some() {}
        Err(A::Error::invalid_type(Unexpected::Seq, &self))
    }

    fn visit_bool<E>(self, _: bool) -> Result<WithoutArrays, E> {
        Ok(WithoutArrays)
    }

    fn visit_i64<E>(self, _: i64) -> Result<WithoutArrays, E> {
        Ok(WithoutArrays)
    }

    fn visit_u64<E>(self, _: u64) -> Result<WithoutArrays, E> {
        Ok(WithoutArrays)
    }

    fn visit_f64<E>(self, _: f64) -> Result<WithoutArrays, E> {
        Ok(WithoutArrays)
    }

    fn visit_str<E>(self, _: &str) -> Result<WithoutArrays, E> {
        Ok(WithoutArrays)
    }

    fn visit_unit<E>(self) -> Result<WithoutArrays, E> {
        Ok(WithoutArrays)
    }
}

fn too_long() -> ProblemResponse {
    let message = format!("the body is longer than {MAX_BODY_BYTES} bytes");
    let error =
        WireError::new(Reason::TooLarge, message).with("limit", MAX_BODY_BYTES).with("what", "the body");
    ProblemResponse::with_status(StatusCode::PAYLOAD_TOO_LARGE, error)
}

fn bad(field: &str, problem: &str) -> WireError {
    WireError::new(Reason::BadField, format!("{field}: {problem}")).with("field", field)
}

/// A time in the format of RFC 3339.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub(crate) struct Time(String);

/// A duration as a number of seconds, whole or fractional.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seconds(prost_types::Duration);

/// Returns the public name of an enum value: `STATE_FALLING_ASLEEP` becomes "falling-asleep".
pub(crate) fn enum_label(name: &str) -> String {
    let word = LONG_PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix));
    let word = word.or_else(|| Some(name.split_once('_')?.1)).unwrap_or(name);
    word.to_ascii_lowercase().replace('_', "-")
}

/// Deserializes an optional field and rejects null. An absent field stays unchanged, but null would
/// look like a removal.
pub(crate) fn not_null<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    from: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

impl From<Timestamp> for Time {
    fn from(mut at: Timestamp) -> Self {
        at.normalize();
        at.seconds = at.seconds.clamp(SECONDS.0, SECONDS.1);
        Self(at.to_string())
    }
}

impl From<prost_types::Duration> for Seconds {
    fn from(span: prost_types::Duration) -> Self {
        Self(span)
    }
}

impl From<Seconds> for prost_types::Duration {
    fn from(span: Seconds) -> Self {
        span.0
    }
}

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        // The control plane sends no negative durations. An agent may report any value: a negative
        // number of seconds becomes 0, and so do negative nanoseconds.
        let part = |n: i32| Duration::from_nanos(u64::try_from(n).unwrap_or(0));
        let whole = |n: i64| u64::try_from(n).ok().map(Duration::from_secs);
        let span = whole(self.0.seconds).map(|whole| whole + part(self.0.nanos)).unwrap_or_default();
        if span.subsec_nanos() == 0 {
            to.serialize_u64(span.as_secs())
        } else {
            to.serialize_f64(span.as_secs_f64())
        }
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let span = Duration::try_from_secs_f64(f64::deserialize(from)?).map_err(D::Error::custom)?;
        prost_types::Duration::try_from(span).map(Self).map_err(D::Error::custom)
    }
}

impl JsonSchema for Time {
    fn schema_name() -> Cow<'static, str> {
        "Time".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "date-time" })
    }
}

impl JsonSchema for Seconds {
    fn schema_name() -> Cow<'static, str> {
        "Seconds".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "number", "minimum": 0 })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_str, to_string};

    use super::*;

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct OuterBody {
        name: String,
        inner: InnerBody,
    }

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct InnerBody {
        size: Option<f64>,
        force: bool,
    }

    #[test]
    fn array_in_place_of_an_object_is_rejected() {
        let body = |text: &str| parse::<OuterBody>(text.as_bytes());
        let full = body(r#"{"name":"a","inner":{"size":1.5,"force":true}}"#).expect("a valid body");
        assert_eq!(full, OuterBody { name: "a".into(), inner: InnerBody { size: Some(1.5), force: true } });
        assert_eq!(body(r#"{"inner":{"size":null}}"#).expect("null is a scalar"), OuterBody::default());
        for text in ["[]", r#"["a"]"#, r#"{"inner":[]}"#, r#"{"inner":[1,true]}"#, "1", "null", r#""x""#] {
            assert!(body(text).is_err(), "{text}");
        }
    }

    fn span(seconds: i64, nanos: i32) -> Seconds {
        prost_types::Duration { seconds, nanos }.into()
    }

    #[test]
    fn duration_is_number_of_seconds() {
        assert_eq!(to_string(&span(900, 0)).unwrap(), "900");
        assert_eq!(to_string(&span(1, 500_000_000)).unwrap(), "1.5");
        assert_eq!(to_string(&span(-5, 0)).unwrap(), "0");
        assert_eq!(to_string(&span(i64::MIN, i32::MIN)).unwrap(), "0");
        assert_eq!(to_string(&span(1, i32::MIN)).unwrap(), "1");
        assert!(to_string(&span(i64::MAX, i32::MAX)).is_ok());
        let read = |text: &str| from_str::<Seconds>(text).map(prost_types::Duration::from).ok();
        assert_eq!(read("1.5"), Some(span(1, 500_000_000).0));
        assert_eq!(read("0"), Some(span(0, 0).0));
        for bad in ["-1", "1e300", "1e19", "\"15m\"", "null", "true"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn time_is_clamped_to_rfc_3339() {
        let time = |seconds, nanos| Time::from(Timestamp { seconds, nanos }).0;
        assert_eq!(time(0, 5_000_000), "1970-01-01T00:00:00.005Z");
        assert_eq!(time(i64::MAX, i32::MAX).get(..20), Some("9999-12-31T23:59:59."));
        assert_eq!(time(i64::MIN, i32::MIN).get(..19), Some("0001-01-01T00:00:00"));
    }

    #[test]
    fn enum_label_matches_state_name() {
        for (state, name) in crate::snapshot::STATES {
            assert_eq!(&enum_label(crate::api::workspaces::convert::state(*state).as_str_name()), name);
        }
        assert_eq!(enum_label("AGENT_CONNECTION_CONNECTED"), "connected");
        assert_eq!(enum_label("ACTIVITY_LEVEL_IDLE"), "idle");
    }
}
