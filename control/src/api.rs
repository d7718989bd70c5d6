//! The control plane's own API: edges that translate, one file for each service.

use podling_proto::error::{Reason, WireError};
use tonic::Request;

use crate::caller::Caller;

pub mod backups;
pub mod tokens;
pub mod workspaces;

/// Who calls. The front has put it there, and lets nothing through without.
pub(crate) fn caller<T>(request: &Request<T>) -> Result<Caller, WireError> {
    request.extensions().get::<Caller>().cloned().ok_or_else(|| {
        WireError::new(Reason::Internal, "a call came in without its caller")
            .with("operation", "authenticate")
    })
}
