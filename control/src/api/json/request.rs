//! Strict extractors. They reject unknown and repeated fields with an error that names the field,
//! and bodies that are too long.

use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use http::{HeaderMap, StatusCode, header::CONTENT_TYPE, request::Parts};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use podling_proto::error::{Reason, WireError};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor},
};

use super::problem_response::ProblemResponse;

/// Longest body in bytes. A longer one is rejected with 413. The longest valid body contains an
/// environment of 16 KiB, in which escapes (`\u001b`) may take six bytes for one.
const MAX_BODY_BYTES: usize = 128 * 1024;

/// Extracts a JSON body. An empty body is read as `{}`.
#[derive(Debug)]
pub(super) struct JsonBody<T>(pub(super) T);

#[derive(Debug)]
pub(super) struct QueryParams<T>(pub(super) T);

/// Extracts the variable part of the path.
#[derive(Debug)]
pub(super) struct PathParam(pub(super) String);

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

#[cfg(test)]
mod tests {
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
}
