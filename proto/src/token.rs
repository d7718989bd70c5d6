//! Tokens: JWTs signed with Ed25519 (`alg` EdDSA) that expire and are limited to verbs and
//! workspaces.
//!
//! EdDSA is the only accepted algorithm. A token that names another algorithm is invalid, whatever
//! its signature. The claim `aud` limits a token to the control plane or to one agent. An agent
//! therefore cannot use the tokens that it receives at the gateway or at another agent.

use std::{collections::BTreeMap, fmt};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use http::{HeaderMap, header::AUTHORIZATION};
use prost_types::Timestamp;
use ring::{
    rand::{SecureRandom, SystemRandom},
    signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey},
};
use serde::{Deserialize, Serialize};

use crate::{error::WireError, v1::Reason, verb::Verbs};

/// Longest token, in bytes; longer ones are invalid. Bounds the work of an unauthenticated call.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;
/// How far the time of issue may lie in the future, in seconds, because clocks of machines differ.
pub const LEEWAY_SECONDS: u64 = 30;

/// The service that a token is valid for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Audience {
    /// The gateway and the control plane's own API.
    Control,
    /// The agent of the workspace with this id.
    Agent(String),
}

/// The claims of a token (RFC 7519).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenClaims {
    /// Subject: the owner that the token was issued to.
    pub sub: String,
    pub aud: Audience,
    /// Time of issue, in seconds since the Unix epoch.
    pub iat: u64,
    /// Expiry, in seconds since the Unix epoch.
    pub exp: u64,
    pub jti: String,
    pub verbs: Verbs,
    /// Ids of the workspaces that the token is limited to; `None` if it is not limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspaces: Option<Vec<String>>,
}

/// Why a token is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Malformed, signed by an unknown key, modified, or issued in the future.
    #[error("the token is not valid: it was modified, or another control plane created it")]
    Invalid,
    #[error("the token expired at {}; create a new one", rfc3339(*.at))]
    Expired {
        /// In seconds since the Unix epoch.
        at: u64,
    },
    /// The token has another audience.
    #[error("the token was created for another service; use one that was created for this service")]
    Foreign,
}

/// An Ed25519 key that signs tokens.
pub struct SigningKey {
    id: String,
    pair: Ed25519KeyPair,
}

/// Public keys by key id.
#[derive(Debug, Clone, Default)]
pub struct VerifyingKeys(BTreeMap<String, Vec<u8>>);

#[derive(Serialize, Deserialize)]
struct JwtHeader {
    alg: String,
    typ: String,
    kid: String,
}

// === impl SigningKey ===

impl SigningKey {
    /// Generates a key. Returns the key and its PKCS#8 form, which is secret. Returns `None` if the
    /// system has no randomness.
    pub fn generate() -> Option<(Self, Vec<u8>)> {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).ok()?;
        Some((Self::from_pkcs8(pkcs8.as_ref())?, pkcs8.as_ref().to_vec()))
    }

    /// Parses a key in PKCS#8 form. Returns `None` if it is malformed.
    pub fn from_pkcs8(pkcs8: &[u8]) -> Option<Self> {
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8).ok()?;
        // The id is a digest of the public key, so two programs that hold the same key agree on it.
        let digest = ring::digest::digest(&ring::digest::SHA256, pair.public_key().as_ref());
        Some(Self { id: BASE64.encode(&digest.as_ref()[..9]), pair })
    }

    /// Returns the key id, which is the `kid` of all tokens that the key signs.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the Ed25519 public key, 32 bytes.
    pub fn public_key(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    pub fn sign(&self, claims: &TokenClaims) -> String {
        let header = JwtHeader { alg: "EdDSA".into(), typ: "JWT".into(), kid: self.id.clone() };
        let signed = format!("{}.{}", encode(&header), encode(claims));
        let signature = self.pair.sign(signed.as_bytes());
        format!("{signed}.{}", BASE64.encode(signature.as_ref()))
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("id", &self.id).finish_non_exhaustive()
    }
}

// === impl VerifyingKeys ===

impl VerifyingKeys {
    /// Creates a set from key ids and public keys.
    pub fn new(keys: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        Self(keys.into_iter().collect())
    }

    /// Verifies a token and returns its claims. `now` is in seconds since the Unix epoch.
    pub fn verify(&self, token: &str, audience: &Audience, now: u64) -> Result<TokenClaims, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Invalid);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Invalid)?;
        let (header, payload) = signed.split_once('.').ok_or(TokenError::Invalid)?;
        let header: JwtHeader = decode(header)?;
        if header.alg != "EdDSA" {
            return Err(TokenError::Invalid);
        }
        let key = self.0.get(&header.kid).ok_or(TokenError::Invalid)?;
        let signature = BASE64.decode(signature).map_err(|_| TokenError::Invalid)?;
        UnparsedPublicKey::new(&ED25519, key)
            .verify(signed.as_bytes(), &signature)
            .map_err(|_| TokenError::Invalid)?;
        let claims: TokenClaims = decode(payload)?;
        if claims.aud != *audience {
            return Err(TokenError::Foreign);
        }
        if now > claims.exp {
            return Err(TokenError::Expired { at: claims.exp });
        }
        if claims.iat > now + LEEWAY_SECONDS {
            return Err(TokenError::Invalid);
        }
        Ok(claims)
    }
}

// === impl Audience ===

impl From<Audience> for String {
    fn from(audience: Audience) -> Self {
        match audience {
            Audience::Control => "podling-control".into(),
            Audience::Agent(workspace) => format!("podling-agent:{workspace}"),
        }
    }
}

impl TryFrom<String> for Audience {
    type Error = TokenError;

    fn try_from(text: String) -> Result<Self, TokenError> {
        match text.strip_prefix("podling-agent:") {
            Some(workspace) => Ok(Self::Agent(workspace.to_owned())),
            None if text == "podling-control" => Ok(Self::Control),
            None => Err(TokenError::Foreign),
        }
    }
}

impl From<TokenError> for WireError {
    fn from(error: TokenError) -> Self {
        let message = error.to_string();
        match error {
            TokenError::Invalid => Self::new(Reason::TokenInvalid, message),
            TokenError::Foreign => Self::new(Reason::TokenForeign, message),
            TokenError::Expired { at } => {
                Self::new(Reason::TokenExpired, message).with("expired_at", rfc3339(at))
            }
        }
    }
}

/// Returns the token in the header `Authorization`. `None` if there is none, or if the scheme is not
/// `Bearer`, in any case (RFC 9110).
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn rfc3339(seconds: u64) -> String {
    Timestamp { seconds: seconds.try_into().unwrap_or(i64::MAX), nanos: 0 }.to_string()
}

/// Returns `bytes` random bytes as URL-safe base64, for `jti`, request ids and secrets. Panics if
/// the system has no randomness.
pub fn random(bytes: usize) -> String {
    let mut buffer = vec![0; bytes];
    // Tokens and secrets need randomness. The kernel's source does not fail once it is seeded.
    SystemRandom::new().fill(&mut buffer).expect("the system has no randomness");
    BASE64.encode(buffer)
}

fn encode<T: Serialize>(value: &T) -> String {
    // Strings, numbers and lists always serialize.
    BASE64.encode(serde_json::to_vec(value).unwrap_or_default())
}

fn decode<T: for<'a> Deserialize<'a>>(text: &str) -> Result<T, TokenError> {
    let bytes = BASE64.decode(text).map_err(|_| TokenError::Invalid)?;
    serde_json::from_slice(&bytes).map_err(|_| TokenError::Invalid)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::v1::Verb;

    fn claims(aud: Audience) -> TokenClaims {
        TokenClaims {
            sub: "ada".into(),
            aud,
            iat: 1000,
            exp: 2000,
            jti: random(9),
            verbs: Verbs::only([Verb::Read]),
            workspaces: None,
        }
    }

    fn keys() -> (SigningKey, VerifyingKeys) {
        let (key, _) = SigningKey::generate().expect("key");
        let keys = VerifyingKeys::new([(key.id().to_owned(), key.public_key().to_vec())]);
        (key, keys)
    }

    #[test]
    fn token_is_valid_only_for_its_audience_and_time() {
        let (key, keys) = keys();
        let ours = Audience::Agent("abc".into());
        let token = key.sign(&claims(ours.clone()));
        assert_eq!(keys.verify(&token, &ours, 1500).expect("valid").sub, "ada");
        assert_eq!(keys.verify(&token, &Audience::Control, 1500), Err(TokenError::Foreign));
        assert_eq!(keys.verify(&token, &Audience::Agent("abd".into()), 1500), Err(TokenError::Foreign));
        assert_eq!(keys.verify(&token, &ours, 2001), Err(TokenError::Expired { at: 2000 }));
        assert_eq!(keys.verify(&token, &ours, 10), Err(TokenError::Invalid), "issued in the future");
    }

    #[test]
    fn other_key_or_algorithm_is_rejected() {
        let (key, _) = keys();
        let (_, others) = other_keys();
        let token = key.sign(&claims(Audience::Control));
        assert_eq!(others.verify(&token, &Audience::Control, 1500), Err(TokenError::Invalid));
        let (_, payload) = token.split_once('.').expect("parts");
        let (payload, _) = payload.split_once('.').expect("parts");
        let none = encode(&JwtHeader { alg: "none".into(), typ: "JWT".into(), kid: key.id().into() });
        let keys = VerifyingKeys::new([(key.id().to_owned(), key.public_key().to_vec())]);
        assert_eq!(
            keys.verify(&format!("{none}.{payload}."), &Audience::Control, 1500),
            Err(TokenError::Invalid)
        );
    }

    fn other_keys() -> (SigningKey, VerifyingKeys) {
        keys()
    }

    proptest! {
        #[test]
        fn modified_token_is_never_valid(at in 0usize..400, to in any::<u8>()) {
            let (key, keys) = keys();
            let mut token = key.sign(&claims(Audience::Control)).into_bytes();
            let at = at % token.len();
            prop_assume!(token[at] != to && to.is_ascii_graphic());
            token[at] = to;
            let changed = String::from_utf8(token).expect("ascii");
            // The last character of unpadded base64 has spare bits; the decoder rejects any that
            // are not zero.
            prop_assert!(keys.verify(&changed, &Audience::Control, 1500).is_err());
        }

        #[test]
        fn arbitrary_text_never_panics(text in ".{0,200}") {
            let (_, keys) = keys();
            prop_assert!(keys.verify(&text, &Audience::Control, 1500).is_err());
        }
    }
}
