//! Tokens for calls to agents. Each is valid for one agent for a few minutes, and cached for half
//! of its lifetime.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use http::HeaderValue;
use podling_core::id::{Owner, WorkspaceId};
use podling_proto::verb::Verbs;

/// Lifetime of an agent token: long enough for clocks that differ, short enough to be soon
/// worthless.
pub(super) const TOKEN_LIFETIME: Duration = Duration::from_secs(5 * 60);
/// Capacity of the cache. When it is full, expired tokens are removed, then all: creating one costs
/// 30 µs.
const MAX_CACHED_TOKENS: usize = 4096;

#[derive(PartialEq, Eq, Hash, Clone)]
struct AgentTokenKey {
    workspace: WorkspaceId,
    owner: Owner,
    verbs: String,
}

/// A cache of recent tokens.
#[derive(Default)]
pub(super) struct AgentTokens(Mutex<HashMap<AgentTokenKey, (HeaderValue, u64)>>);

impl AgentTokens {
    /// Returns a cached token, or one from `mint`, which gets the expiry. Times are seconds since
    /// 1970.
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
        // After the clock was set back, a token looks younger than it is. An expiry too far in the
        // future is not used.
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
