//! Derives from a request's method, path and headers which verb it requires and whether it wakes
//! the workspace.

use http::{HeaderMap, Method};
use podling_proto::{metadata, method, v1::Verb};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AccessRequirement {
    pub(super) verb: Verb,
    /// Whether the request wakes the workspace and is held until the workspace is awake.
    pub(super) wakes: bool,
    /// Whether the caller waits for the result, so that the call is use of the workspace.
    pub(super) in_use: bool,
}

impl AccessRequirement {
    /// Returns the requirement of a request. An undeclared path requires `admin` and never wakes.
    pub(super) fn of(method: &Method, path: &str, headers: &HeaderMap) -> Self {
        let declared = match method::find(path).filter(|m| m.is_agents()) {
            Some(rpc) => Some((rpc.verb(), rpc.wakes, rpc.in_use)),
            None if path.starts_with("/files/") => match *method {
                Method::GET | Method::HEAD => Some((Verb::FilesRead, true, true)),
                Method::PUT => Some((Verb::FilesWrite, true, true)),
                _ => None,
            },
            None if path == "/export.zip" && matches!(*method, Method::GET | Method::HEAD) => {
                Some((Verb::FilesRead, true, true))
            }
            // Every caller that may see a workspace may see which services its agent has.
            None if is_health_or_reflection(path) => Some((Verb::Read, false, false)),
            None => None,
        };
        let (verb, wakes, in_use) = declared.unwrap_or((Verb::Admin, false, false));
        let never = headers.get(metadata::WAKE).is_some_and(|value| value == "never");
        Self { verb, wakes: wakes && !never, in_use }
    }
}

/// Returns whether `path` belongs to gRPC's health or reflection service.
pub(crate) fn is_health_or_reflection(path: &str) -> bool {
    ["/grpc.health.v1.Health/", "/grpc.reflection.v1.", "/grpc.reflection.v1alpha."]
        .iter()
        .any(|service| path.starts_with(service))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn needs(method: Method, path: &str) -> (Verb, bool) {
        let needs = AccessRequirement::of(&method, path, &HeaderMap::new());
        (needs.verb, needs.wakes)
    }

    #[test]
    fn path_decides_verb_and_wake() {
        assert_eq!(needs(Method::POST, "/podling.agent.v1.Terminals/Attach"), (Verb::Terminal, true));
        assert_eq!(needs(Method::POST, "/podling.agent.v1.Terminals/Write"), (Verb::Terminal, false));
        assert_eq!(needs(Method::GET, "/files/a%2Fb"), (Verb::FilesRead, true));
        assert_eq!(needs(Method::HEAD, "/files/"), (Verb::FilesRead, true));
        assert_eq!(needs(Method::PUT, "/files/a"), (Verb::FilesWrite, true));
        assert_eq!(needs(Method::GET, "/export.zip"), (Verb::FilesRead, true));
    }

    #[test]
    fn undeclared_path_needs_admin_and_never_wakes() {
        for (method, path) in [
            (Method::POST, "/podling.agent.v1.Terminals/Create2"),
            (Method::POST, "/podling.agent.v1.Terminals/Cre%61te"),
            (Method::POST, "/podling.control.v1.Workspaces/Get"),
            (Method::DELETE, "/files/a"),
            (Method::POST, "/export.zip"),
            (Method::GET, "/files"),
            (Method::GET, "/metrics"),
            (Method::GET, "/"),
        ] {
            assert_eq!(needs(method, path), (Verb::Admin, false), "{path}");
        }
    }

    #[test]
    fn never_wake_header_prevents_wake() {
        let mut headers = HeaderMap::new();
        headers.insert(metadata::WAKE, HeaderValue::from_static("never"));
        let needs = AccessRequirement::of(&Method::POST, "/podling.agent.v1.Terminals/Attach", &headers);
        assert_eq!((needs.verb, needs.wakes), (Verb::Terminal, false));
    }
}
