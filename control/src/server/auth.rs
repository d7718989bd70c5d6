//! Authenticates callers and authorizes them for the control plane's own methods.

use http::{HeaderMap, header::AUTHORIZATION};
use podling_proto::{
    error::{Reason, WireError},
    metadata, method,
    v1::Verb,
};

use crate::{gateway::is_health_or_reflection, identity::ControlIdentity, principal::Principal};

/// Returns the principal of the request's bearer token.
pub(super) fn caller(identity: &ControlIdentity, headers: &HeaderMap) -> Result<Principal, WireError> {
    let Some(value) = headers.get(AUTHORIZATION) else { return identity.authenticate(None) };
    // The name of the scheme is case-insensitive (RFC 9110).
    let token = value
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    match token {
        Some((_, token)) => identity.authenticate(Some(token.trim())),
        None => Err(WireError::new(
            Reason::TokenInvalid,
            "the authorization header holds no token; send \"authorization: Bearer <token>\"",
        )),
    }
}

/// Checks that `caller` may use the control plane's own method or page at `path`. An undeclared
/// path requires `admin`. Fails with `BAD_FIELD` for a method of agents, which needs a workspace's
/// id.
pub(super) fn may_call(caller: &Principal, path: &str) -> Result<(), WireError> {
    match method::find(path) {
        Some(rpc) if rpc.is_agents() => {
            let message = format!(
                "this method is served by a workspace's agent; name the workspace with metadata \"{}: <id>\"",
                metadata::WORKSPACE
            );
            Err(WireError::new(Reason::BadField, message)
                .with("field", metadata::WORKSPACE)
                .with("allowed", "the id of a workspace"))
        }
        Some(rpc) => caller.may(rpc.verb()),
        None if path == super::router::METRICS || is_health_or_reflection(path) => caller.may(Verb::Read),
        None => caller.may(Verb::Admin),
    }
}
