//! The control plane's own API: edges that translate, one file for each service.

use http::Extensions;
use podling_proto::error::{Reason, WireError};
use tonic::Request;

use crate::principal::Principal;

pub mod json;
pub mod tokens;
pub mod workspace_archives;
pub mod workspaces;

/// Who calls. The front has put it there, and lets nothing through without.
pub(crate) fn caller<T>(request: &Request<T>) -> Result<Principal, WireError> {
    principal_of(request.extensions())
}

/// The same, of a request in any protocol.
fn principal_of(extensions: &Extensions) -> Result<Principal, WireError> {
    extensions.get::<Principal>().cloned().ok_or_else(|| {
        WireError::new(Reason::Internal, "a call came in without its caller")
            .with("operation", "authenticate")
    })
}

/// A call of an RPC on behalf of a caller who came by another protocol.
fn request_as<T>(caller: Principal, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(caller);
    request
}
