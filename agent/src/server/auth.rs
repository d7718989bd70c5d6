//! Authorizes every call by its token. Only health and readiness need no token.
//!
//! Tokens are verified with the public keys in the claim, without a call to the control plane.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use http::{HeaderMap, Method};
use podling_proto::{
    error::WireError,
    error_response::WireProtocol,
    method,
    token::{Audience, bearer},
    v1::{Reason, Verb},
    verb,
};

use super::connection::ConnectionAuth;
use crate::claim::{Claim, ClaimReceiver};

/// HTTP paths that need no token.
const PUBLIC_PATHS: [&str; 2] = ["/healthz", "/readyz"];
const HEALTH_SERVICE: &str = "/grpc.health.v1.Health/";
const REFLECTION: [&str; 2] =
    ["/grpc.reflection.v1.ServerReflection/", "/grpc.reflection.v1alpha.ServerReflection/"];

/// Delay after which a client may retry at an agent that is not claimed yet.
const UNCLAIMED_RETRY: Duration = Duration::from_secs(1);

/// Forwards authorized calls, and answers all others with an error. Middleware of the router.
pub async fn check(State(claims): State<ClaimReceiver>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if PUBLIC_PATHS.contains(&path) || path.starts_with(HEALTH_SERVICE) {
        return next.run(request).await;
    }
    let claim = claims.borrow().clone();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    match authorize(claim.as_deref(), request.method(), path, request.headers(), now) {
        Ok(()) => {
            // A valid token authenticates the connection, which frees its unauthenticated slot.
            if let Some(auth) = request.extensions().get::<ConnectionAuth>() {
                auth.mark_authenticated();
            }
            next.run(request).await
        }
        Err(error) => WireProtocol::of(request.headers()).error_response(error),
    }
}

/// Checks the token of a call. `now` is in seconds since the Unix epoch. Pure.
fn authorize(
    claim: Option<&Claim>,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
    now: u64,
) -> Result<(), WireError> {
    let claim = claim.ok_or_else(|| {
        WireError::new(Reason::Unclaimed, "this agent is not claimed for a workspace yet; retry later")
            .retry_after(UNCLAIMED_RETRY)
    })?;
    let token = bearer(headers).ok_or_else(|| {
        WireError::new(Reason::TokenMissing, "the call carries no token; send `authorization: Bearer TOKEN`")
    })?;
    let ours = Audience::Agent(claim.workspace_id.clone());
    let claims = claim.token_keys.verify(token, &ours, now)?;
    if claims.workspaces.as_ref().is_some_and(|allowed| !allowed.contains(&claim.workspace_id)) {
        let message = "the token is limited to other workspaces; use one that covers this workspace";
        return Err(WireError::new(Reason::WorkspaceDenied, message));
    }
    let needed = required_verb(method, path);
    if !claims.verbs.allow(needed) {
        let name = verb::name(needed);
        let message = format!("the token lacks the verb \"{name}\"; it has: {}", claims.verbs);
        return Err(WireError::new(Reason::VerbMissing, message).with("verb", name));
    }
    Ok(())
}

/// Returns the verb that a call requires. Unknown methods and paths require `admin`.
fn required_verb(http: &Method, path: &str) -> Verb {
    if let Some(method) = method::find(path) {
        return method.verb();
    }
    if path.starts_with("/files/") {
        return match *http {
            Method::GET | Method::HEAD => Verb::FilesRead,
            Method::PUT => Verb::FilesWrite,
            _ => Verb::Admin,
        };
    }
    if path == "/export.zip" && matches!(*http, Method::GET | Method::HEAD) {
        return Verb::FilesRead;
    }
    if path == "/metrics" || REFLECTION.iter().any(|service| path.starts_with(service)) {
        return Verb::Read;
    }
    Verb::Admin
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rpc_requires_verb_of_its_options() {
        for method in method::METHODS {
            assert_eq!(required_verb(&Method::POST, method.path), method.verb());
        }
    }

    #[test]
    fn http_path_requires_its_verb_and_unknown_path_admin() {
        assert_eq!(required_verb(&Method::GET, "/files/a"), Verb::FilesRead);
        assert_eq!(required_verb(&Method::HEAD, "/files/a"), Verb::FilesRead);
        assert_eq!(required_verb(&Method::PUT, "/files/a"), Verb::FilesWrite);
        assert_eq!(required_verb(&Method::DELETE, "/files/a"), Verb::Admin);
        assert_eq!(required_verb(&Method::GET, "/export.zip"), Verb::FilesRead);
        assert_eq!(required_verb(&Method::POST, "/export.zip"), Verb::Admin);
        assert_eq!(required_verb(&Method::GET, "/metrics"), Verb::Read);
        let reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
        assert_eq!(required_verb(&Method::POST, reflection), Verb::Read);
        assert_eq!(required_verb(&Method::POST, "/podling.agent.v1.Terminals/Future"), Verb::Admin);
        assert_eq!(required_verb(&Method::GET, "/"), Verb::Admin);
    }
}
