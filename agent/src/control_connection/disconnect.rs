//! Reasons why a stream to the control plane ended.

use std::time::Duration;

use tonic::Status;

use super::{dial::ControlDialError, messages};

/// Time limit for the control plane's answer to hello.
pub(super) const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Reason why a session ended before the agent did.
#[derive(Debug, thiserror::Error)]
pub(super) enum DisconnectError {
    #[error("cannot dial the control plane")]
    Dial(#[from] ControlDialError),
    #[error("the credential contains characters that are invalid in an HTTP header")]
    BadCredential,
    /// The control plane rejected the stream, or the stream broke.
    #[error("the control plane reported: {} ({:?})", .0.message(), .0.code())]
    Rejected(Status),
    #[error("the control plane closed the stream")]
    Closed,
    #[error("the control plane did not answer hello within {HELLO_TIMEOUT:?}")]
    NoAnswer,
    #[error("the control plane acknowledged no heartbeat for {0:?}")]
    Silent(Duration),
    /// The outgoing queue is full.
    #[error("the control plane does not read its messages")]
    Stuck,
    #[error("the claim is invalid")]
    InvalidClaim(#[from] messages::InvalidClaim),
}
