//! Errors with a stable reason, shared by both daemons.
//!
//! A domain error maps to a [`Reason`] and a message for display. One table has the gRPC code and the
//! HTTP status of each reason.

use std::{collections::HashMap, time::Duration};

use http::StatusCode;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, PreconditionViolation, StatusExt};

pub use crate::v1::Reason;

/// `domain` of every ErrorInfo.
pub const DOMAIN: &str = "podling.dev";

/// Longest message or metadata value, in characters; longer ones are cut. The HTTP/2 trailers
/// contain the message more than once. Trailers beyond the peer's limit (16 KiB) end the whole
/// connection with all its calls.
const MAX_TEXT_CHARS: usize = 512;

/// Default retry delay of errors with the code UNAVAILABLE.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// An error with its reason, message and metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireError {
    reason: Reason,
    message: String,
    metadata: HashMap<String, String>,
    retry_after: Option<Duration>,
    http_status: Option<StatusCode>,
}

impl WireError {
    /// Creates an error without metadata. `message` is for display and says what to do.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: bounded(message.into()),
            metadata: HashMap::new(),
            retry_after: None,
            http_status: None,
        }
    }

    /// Creates the error of a field that is missing or outside its range. `allowed` follows the name of
    /// the field in the message.
    pub fn bad_field(field: &str, allowed: impl ToString) -> Self {
        let allowed = allowed.to_string();
        Self::new(Reason::BadField, format!("{field}: {allowed}"))
            .with("field", field)
            .with("allowed", allowed)
    }

    /// Adds a metadata value. `key` is one of those that `errors.proto` lists for the reason.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl ToString) -> Self {
        self.metadata.insert(key.to_owned(), bounded(value.to_string()));
        self
    }

    /// Sets the delay after which a client may retry.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// Replaces the HTTP status of the reason by a more specific one, such as 405.
    #[must_use]
    pub fn http(mut self, status: StatusCode) -> Self {
        self.http_status = Some(status);
        self
    }

    pub fn reason(&self) -> Reason {
        self.reason
    }

    pub fn message(&self) -> &str {
        &self.message
    }

    /// Returns the metadata, with the keys that `errors.proto` lists for the reason.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }

    pub fn http_status(&self) -> StatusCode {
        self.http_status.unwrap_or_else(|| code_and_status(self.reason).1)
    }

    /// Returns the delay after which a client may retry; `None` if the error is not retryable.
    pub fn retry_delay(&self) -> Option<Duration> {
        self.retry_after.or_else(|| (code(self.reason) == Code::Unavailable).then_some(RETRY_AFTER))
    }
}

/// Cuts text to [`MAX_TEXT_CHARS`] and marks the cut with "…".
fn bounded(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(MAX_TEXT_CHARS) {
        text.truncate(end);
        text.push('…');
    }
    text
}

/// Joins the texts of an error and of its causes with ": ".
pub fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let chain = std::iter::successors(Some(error), |&error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Returns the gRPC code of a reason.
pub fn code(reason: Reason) -> Code {
    code_and_status(reason).0
}

/// Returns the gRPC code and the HTTP status of a reason. The ranges are those of `errors.proto`.
/// Agent and control plane answer at the same address, so both use this table. It follows the mapping
/// of google.rpc.Code, except that FAILED_PRECONDITION is 409 and that some reasons have a status of
/// their own.
fn code_and_status(reason: Reason) -> (Code, StatusCode) {
    match (reason, reason as i32) {
        (Reason::BadOffset, _) => (Code::OutOfRange, StatusCode::RANGE_NOT_SATISFIABLE),
        (Reason::TooLarge, _) => (Code::ResourceExhausted, StatusCode::PAYLOAD_TOO_LARGE),
        (Reason::DiskFull, _) => (Code::ResourceExhausted, StatusCode::INSUFFICIENT_STORAGE),
        (_, 1..=9) => (Code::Unauthenticated, StatusCode::UNAUTHORIZED),
        (_, 10..=19) => (Code::PermissionDenied, StatusCode::FORBIDDEN),
        (_, 20..=29) => (Code::InvalidArgument, StatusCode::BAD_REQUEST),
        (_, 30..=39) => (Code::NotFound, StatusCode::NOT_FOUND),
        (_, 40..=49) => (Code::AlreadyExists, StatusCode::CONFLICT),
        (_, 50..=69) => (Code::FailedPrecondition, StatusCode::CONFLICT),
        (_, 70..=79) => (Code::OutOfRange, StatusCode::BAD_REQUEST),
        (_, 80..=99) => (Code::ResourceExhausted, StatusCode::TOO_MANY_REQUESTS),
        (_, 100..=109) => (Code::DataLoss, StatusCode::UNPROCESSABLE_ENTITY),
        (_, 110..=119) => (Code::Unavailable, StatusCode::SERVICE_UNAVAILABLE),
        (_, 120..=129) => (Code::Unimplemented, StatusCode::NOT_FOUND),
        (_, 130..=139) => (Code::Aborted, StatusCode::CONFLICT),
        (_, 150..=159) => (Code::DeadlineExceeded, StatusCode::REQUEST_TIMEOUT),
        _ => (Code::Internal, StatusCode::INTERNAL_SERVER_ERROR),
    }
}

/// Returns the wire name of a reason, such as `STALE_EPOCH`.
pub fn name(reason: Reason) -> &'static str {
    reason.as_str_name().trim_start_matches("REASON_")
}

/// Returns the reason in a status. `None` if the domain is not [`DOMAIN`] or the reason is unknown.
pub fn reason(status: &Status) -> Option<Reason> {
    let info = status.get_details_error_info().filter(|info| info.domain == DOMAIN)?;
    from_name(&info.reason)
}

/// Returns the reason with this wire name; `None` if it is unknown.
pub fn from_name(name: &str) -> Option<Reason> {
    Reason::from_str_name(&format!("REASON_{name}"))
}

/// Returns one metadata value of a status.
pub fn detail(status: &Status, key: &str) -> Option<String> {
    status.get_details_error_info()?.metadata.remove(key)
}

impl From<WireError> for Status {
    fn from(error: WireError) -> Self {
        let code = code(error.reason);
        let name = name(error.reason);
        let retry = error.retry_delay();
        let mut details = ErrorDetails::with_error_info(name, DOMAIN, error.metadata);
        if code == Code::FailedPrecondition {
            details.set_precondition_failure(vec![PreconditionViolation::new(
                name,
                "",
                error.message.clone(),
            )]);
        }
        if let Some(delay) = retry {
            details.set_retry_info(Some(delay));
        }
        Self::with_error_details(code, error.message, details)
    }
}

/// Restores the error from a status, to send it over another protocol. A status without a known
/// reason becomes [`Reason::Internal`].
impl From<Status> for WireError {
    fn from(status: Status) -> Self {
        let reason = reason(&status).unwrap_or(Reason::Internal);
        let retry_after = status.get_details_retry_info().and_then(|info| info.retry_delay);
        let metadata = status.get_details_error_info().map(|info| info.metadata).unwrap_or_default();
        Self { metadata, retry_after, ..Self::new(reason, status.message()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_survives_round_trip_through_status() {
        let error = WireError::new(Reason::TooManyStreams, "too many").with("limit", 3);
        for error in [error.clone(), error.retry_after(Duration::from_secs(7))] {
            assert_eq!(WireError::from(Status::from(error.clone())), error);
        }
        let unavailable = WireError::new(Reason::ShuttingDown, "later");
        let again = WireError::from(Status::from(unavailable.clone()));
        assert_eq!((again.reason(), again.retry_delay()), (unavailable.reason(), unavailable.retry_delay()));
        assert_eq!(WireError::from(Status::unknown("?")).reason(), Reason::Internal);
    }

    #[test]
    fn status_carries_reason_and_metadata() {
        let status: Status = WireError::new(Reason::InputGap, "a hole").with("expected_offset", 42).into();
        assert_eq!(status.code(), Code::OutOfRange);
        assert_eq!(reason(&status), Some(Reason::InputGap));
        assert_eq!(detail(&status, "expected_offset").as_deref(), Some("42"));
    }

    #[test]
    fn long_message_and_metadata_are_cut() {
        let id = "ä".repeat(100_000);
        let error = WireError::new(Reason::TerminalNotFound, format!("no terminal {id}")).with("id", &id);
        assert_eq!(error.message().chars().count(), MAX_TEXT_CHARS + 1);
        assert_eq!(detail(&error.into(), "id").expect("id").chars().count(), MAX_TEXT_CHARS + 1);
    }

    #[test]
    fn unavailable_error_has_retry_delay() {
        let status: Status = WireError::new(Reason::AgentUnreachable, "no link").into();
        assert_eq!(status.get_details_retry_info().and_then(|r| r.retry_delay), Some(RETRY_AFTER));
    }

    #[test]
    fn failed_precondition_names_violation() {
        let status: Status = WireError::new(Reason::NotAwake, "asleep").into();
        let failure = status.get_details_precondition_failure().expect("details");
        assert_eq!(failure.violations[0].r#type, "NOT_AWAKE");
    }
}
