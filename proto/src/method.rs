//! Access rules of each RPC, read from the options in the .proto files when this crate is built.

use crate::v1::Verb;

/// An RPC with its access rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Method {
    /// Request path, such as `/podling.agent.v1.Terminals/Create`.
    pub path: &'static str,
    verb: i32,
    /// Whether a call wakes a sleeping workspace.
    pub wakes: bool,
    /// Whether a call under way is use of the workspace.
    pub in_use: bool,
}

impl Method {
    /// Returns the verb that a caller's token must carry.
    pub fn verb(&self) -> Verb {
        Verb::try_from(self.verb).unwrap_or(Verb::Admin)
    }

    /// Returns the full name of the service, such as `podling.agent.v1.Terminals`.
    pub fn service(&self) -> Option<&'static str> {
        self.path.strip_prefix('/')?.split_once('/').map(|(service, _)| service)
    }

    /// Returns whether agents implement the method, so that the gateway forwards it. The control
    /// plane implements all other methods.
    pub fn is_agents(&self) -> bool {
        self.path.starts_with("/podling.agent.")
    }
}

/// All methods, sorted by path.
pub const METHODS: &[Method] = include!(concat!(env!("OUT_DIR"), "/methods.rs"));

/// Returns the method with this request path. The lookup is a binary search.
pub fn find(path: &str) -> Option<&'static Method> {
    METHODS.binary_search_by(|m| m.path.cmp(path)).ok().map(|i| &METHODS[i])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn method_table_matches_options() {
        let attach = find("/podling.agent.v1.Terminals/Attach").expect("Attach");
        assert_eq!((attach.verb(), attach.wakes), (Verb::Terminal, true));
        assert_eq!(attach.service(), Some("podling.agent.v1.Terminals"));
        let write = find("/podling.agent.v1.Terminals/Write").expect("Write");
        assert_eq!((write.verb(), write.wakes), (Verb::Terminal, false), "a keystroke never wakes");
        let watch = find("/podling.agent.v1.Activity/Watch").expect("Watch");
        assert!(!watch.wakes, "watching activity never wakes");
        assert!(!watch.in_use && !attach.in_use, "a client that only looks on does not keep awake");
        let run = find("/podling.agent.v1.Processes/Run").expect("Run");
        assert!(run.in_use, "a client waits for the command");
        assert!(find("/podling.agent.v1.Terminals/Nope").is_none());
    }

    #[test]
    fn every_method_is_found_by_path() {
        assert!(METHODS.is_sorted_by_key(|m| m.path));
        for method in METHODS {
            assert_eq!(find(method.path), Some(method));
        }
    }
}
