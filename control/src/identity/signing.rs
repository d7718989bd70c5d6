//! The keys that sign tokens. A start of the control plane replaces a signing key that is older
//! than 30 days. The previous key stays valid until the next replacement, when all its tokens have
//! expired.

use std::{collections::VecDeque, path::Path, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use podling_proto::token::{SigningKey, VerifyingKeys};
use serde::{Deserialize, Serialize};

use super::secret_file::{self, SecretFileError};

/// Age at which a start replaces the signing key. At least the longest lifetime of a token, so that
/// all tokens of a removed key have expired.
const KEY_LIFETIME: Duration = super::MAX_TTL;
/// Valid keys: the signing key and the previous one.
const MAX_KEYS: usize = 2;

/// A public key that agents receive with their claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicTokenKey {
    /// Key id, which tokens name in their header (`kid`).
    pub id: String,
    /// Ed25519, 32 bytes long.
    pub public_key: Vec<u8>,
}

pub(super) struct SigningKeys {
    current: SigningKey,
    pub(super) public: Vec<PublicTokenKey>,
    pub(super) verifying: VerifyingKeys,
}

/// One entry of the key file. The newest key comes first.
#[derive(Serialize, Deserialize)]
struct StoredKey {
    /// In seconds since 1970.
    created: u64,
    pkcs8: String,
}

impl SigningKeys {
    /// Reads the keys from the file `path`. Creates a new signing key if there is none, or if the
    /// newest is too old at `now` (seconds since 1970).
    pub(super) fn open(path: &Path, now: u64) -> Result<Self, SecretFileError> {
        let unusable = || SecretFileError::Unusable { path: path.to_owned(), what: "token keys" };
        let mut stored: VecDeque<StoredKey> = match secret_file::read(path)? {
            Some(json) => serde_json::from_slice(&json).map_err(|_| unusable())?,
            None => VecDeque::new(),
        };
        if stored.front().is_none_or(|key| now.saturating_sub(key.created) >= KEY_LIFETIME.as_secs()) {
            let (_, pkcs8) = SigningKey::generate().ok_or_else(unusable)?;
            stored.push_front(StoredKey { created: now, pkcs8: BASE64.encode(pkcs8) });
            stored.truncate(MAX_KEYS);
            let json = serde_json::to_vec(&stored).map_err(|_| unusable())?;
            secret_file::write(path, &json)?;
        }
        let mut keys = stored
            .iter()
            .map(|key| SigningKey::from_pkcs8(&BASE64.decode(&key.pkcs8).ok()?))
            .collect::<Option<VecDeque<_>>>()
            .ok_or_else(unusable)?;
        let public: Vec<_> = keys
            .iter()
            .map(|key| PublicTokenKey { id: key.id().to_owned(), public_key: key.public_key().to_vec() })
            .collect();
        let verifying = VerifyingKeys::new(public.iter().map(|key| (key.id.clone(), key.public_key.clone())));
        Ok(Self { current: keys.pop_front().ok_or_else(unusable)?, public, verifying })
    }

    pub(super) fn sign(&self, claims: &podling_proto::token::TokenClaims) -> String {
        self.current.sign(claims)
    }
}

#[cfg(test)]
mod tests {
    use podling_proto::{
        token::{Audience, TokenClaims},
        verb::Verbs,
    };

    use super::*;

    #[test]
    fn token_survives_one_key_rotation_but_not_two() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("token-keys.json");
        let month = KEY_LIFETIME.as_secs();
        let claims = TokenClaims {
            sub: "ada".into(),
            aud: Audience::Control,
            iat: 0,
            exp: 4 * month,
            jti: "x".into(),
            verbs: Verbs::admin(),
            workspaces: None,
        };
        let token = SigningKeys::open(&path, 0).expect("first").sign(&claims);
        let valid = |now| {
            let keys = SigningKeys::open(&path, now).expect("keys");
            assert!(keys.public.len() <= MAX_KEYS);
            keys.verifying.verify(&token, &Audience::Control, now).is_ok()
        };
        assert!(valid(month - 1), "the signing key verifies its tokens");
        assert!(valid(month), "the previous key verifies its tokens");
        assert!(!valid(2 * month), "a removed key verifies no tokens");
    }
}
