//! Tokens that calls carry to an agent: minted for that agent alone, minutes long, and kept until half their life is over.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use http::HeaderValue;
use podling_core::id::{Owner, WorkspaceId};
use podling_proto::verb::Verbs;

/// How long a token at an agent lives: long enough for clocks that differ, short enough to be worthless soon.
pub(super) const TOKEN_LIFETIME: Duration = Duration::from_secs(5 * 60);
/// Tokens kept. When it is full the old ones go, then all: making one costs 30 µs.
const MAX_CACHED_TOKENS: usize = 4096;

#[derive(PartialEq, Eq, Hash, Clone)]
struct AgentTokenKey {
    workspace: WorkspaceId,
    owner: Owner,
    verbs: String,
}

/// The tokens that were minted lately.
#[derive(Default)]
pub(super) struct AgentTokens(Mutex<HashMap<AgentTokenKey, (HeaderValue, u64)>>);

impl AgentTokens {
    /// The token for these, from the cache or from `mint` (which gets the end of its life); `now` in seconds since 1970.
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
        // A clock that was set back makes a token look younger than it is; one from the future is not used.
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
