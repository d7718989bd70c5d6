//! The control plane's own API. Each gRPC service has one file, which only translates between the
//! wire and the driver.

use http::Extensions;
use podling_proto::error::{Reason, WireError};
use tonic::Request;

use crate::principal::Principal;

pub mod json;
pub mod tokens;
pub mod workspace_archives;
pub mod workspaces;

/// Returns the authenticated caller of a request. The router adds the caller to every request that
/// it admits.
pub(crate) fn caller<T>(request: &Request<T>) -> Result<Principal, WireError> {
    principal_of(request.extensions())
}

/// Returns the authenticated caller of a request in any protocol.
fn principal_of(extensions: &Extensions) -> Result<Principal, WireError> {
    extensions.get::<Principal>().cloned().ok_or_else(|| {
        WireError::new(Reason::Internal, "the request carries no authenticated caller")
            .with("operation", "authenticate")
    })
}

/// Builds the request of an RPC for a caller that uses another protocol.
fn request_as<T>(caller: Principal, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(caller);
    request
}
