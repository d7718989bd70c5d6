//! Why a stream to the control plane broke.

use std::time::Duration;

use tonic::Status;

use super::{dial::DialError, messages};

/// The control plane answers hello within this time.
pub(super) const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// How a session broke.
#[derive(Debug, thiserror::Error)]
pub(super) enum DisconnectError {
    /// No connection.
    #[error("dialling the control plane")]
    Dial(#[from] DialError),
    /// The credential cannot be put into a header.
    #[error("the credential holds characters that no header may")]
    BadCredential,
    /// The control plane refused, or the stream broke.
    #[error("the control plane: {} ({:?})", .0.message(), .0.code())]
    Refused(Status),
    /// The stream ended.
    #[error("the control plane closed the stream")]
    Closed,
    /// Hello was not answered.
    #[error("no answer to hello within {HELLO_TIMEOUT:?}")]
    NoAnswer,
    /// HeartbeatSchedule are not acknowledged.
    #[error("no heartbeat was acknowledged for {0:?}")]
    Silent(Duration),
    /// It does not read what we send.
    #[error("the control plane does not read")]
    Stuck,
    /// It received something we cannot follow.
    #[error("a claim that cannot be served")]
    InvalidClaim(#[from] messages::InvalidClaim),
}
