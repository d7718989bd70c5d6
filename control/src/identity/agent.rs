//! Tokens for calls to agents. A token is valid at one agent for five minutes, and is reused for
//! half of that time.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use http::HeaderValue;
use podling_core::id::{Owner, WorkspaceId};
use podling_proto::verb::Verbs;

/// Lifetime of an agent token. Long enough that small differences between clocks do not matter, and
/// short enough that a leaked token is soon worthless.
pub(super) const TOKEN_LIFETIME: Duration = Duration::from_secs(5 * 60);
/// Capacity of the cache. A full cache drops tokens in the second half of their lifetime. If it is
/// still full, it drops all, because creating a token costs only 30 µs.
const MAX_CACHED_TOKENS: usize = 4096;

#[derive(PartialEq, Eq, Hash, Clone)]
struct AgentTokenKey {
    workspace: WorkspaceId,
    owner: Owner,
    verbs: String,
}

/// A cache of `authorization` headers with the expiry of their tokens.
#[derive(Default)]
pub(super) struct AgentTokens(Mutex<HashMap<AgentTokenKey, (HeaderValue, u64)>>);

impl AgentTokens {
    /// Returns a cached header, or the result of `mint`, which is called with the expiry of a new
    /// token. Times are in seconds since 1970.
    pub(super) fn get(
        &self,
        workspace: &WorkspaceId,
        owner: &Owner,
        verbs: &Verbs,
        now: u64,
        mint: impl FnOnce(u64) -> HeaderValue,
    ) -> HeaderValue {
        let key =
            AgentTokenKey { workspace: workspace.clone(), owner: owner.clone(), verbs: verbs.to_string() };
        let half = TOKEN_LIFETIME.as_secs() / 2;
        // If the clock was set back, the remaining time exceeds the lifetime. Agents would reject
        // such a token as issued in the future.
        let fresh = |end: u64| end > now + half && end <= now + 2 * half;
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((token, _)) = tokens.get(&key).filter(|(_, end)| fresh(*end)) {
            return token.clone();
        }
        if tokens.len() >= MAX_CACHED_TOKENS {
            tokens.retain(|_, (_, end)| fresh(*end));
            if tokens.len() >= MAX_CACHED_TOKENS {
                tokens.clear();
            }
        }
        let token = mint(now + TOKEN_LIFETIME.as_secs());
        tokens.insert(key, (token.clone(), now + TOKEN_LIFETIME.as_secs()));
        token
    }
}
