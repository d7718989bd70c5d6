//! The control plane's identity: the root token, signing keys for tokens, tokens for calls to
//! agents, and the certificate that agents verify.
//!
//! The root token is random and opaque. It allows everything, so only the user of the control plane
//! may read its file. A start replaces a signing key that is older than 30 days. The previous key
//! stays valid until the next replacement, when all its tokens have expired. A token for calls to
//! an agent is valid at that agent for five minutes, and is reused for half of that time.
//!
//! Independent of transports. Callers pass the text of a token and get a [`Principal`] or an error.

pub(crate) mod certificate;
pub(crate) mod checks;
pub mod secret_file;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use http::HeaderValue;
use podling_core::id::{Owner, WorkspaceId};
use podling_proto::{
    control::v1::TokenKey,
    error::{Reason, WireError},
    token::{self, Audience, SigningKey, TokenClaims, TokenError, VerifyingKeys},
    v1::Verb,
    verb::Verbs,
};
use serde::{Deserialize, Serialize};

pub use self::{certificate::server_config, secret_file::SecretFileError};
use crate::{agent_address::Fingerprint, principal::Principal};

/// Longest lifetime of a token.
pub const MAX_TTL: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// The owner that the root token acts for.
const ROOT_OWNER: &str = "root";
/// Files with secrets, as paths in the data directory.
const ROOT_TOKEN: &str = "root-token";
const TOKEN_KEYS: &str = "control/token-keys.json";
const CA_KEY: &str = "control/ca.key";
/// Secrets that other parties depend on, as paths in the data directory. With a new one, tokens would
/// become invalid, or running agents would reject the control plane. All other files of the identity
/// are derived from these secrets.
pub const LONG_LIVED_SECRETS: [&str; 3] = [ROOT_TOKEN, TOKEN_KEYS, CA_KEY];
/// Lifetime of an agent token. Long enough that small differences between clocks do not matter, and
/// short enough that a leaked token is soon worthless.
const TOKEN_LIFETIME: Duration = Duration::from_secs(5 * 60);
/// Capacity of the cache. A full cache drops tokens in the second half of their lifetime. If it is
/// still full, it drops all, because creating a token costs only 30 µs.
const MAX_CACHED_TOKENS: usize = 4096;
/// Prefix by which people and secret scanners recognise the token as Podling's.
const PREFIX: &str = "podling_";
/// Random bytes in a token.
const BYTES: usize = 32;
/// Age at which a start replaces the signing key. At least the longest lifetime of a token, so that
/// all tokens of a removed key have expired.
const KEY_LIFETIME: Duration = MAX_TTL;
/// Valid keys: the signing key and the previous one.
const MAX_KEYS: usize = 2;

/// Behaviour of a start if a secret of [`LONG_LIVED_SECRETS`] is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissingSecrets {
    /// Creates the secret. For the first start, and for a request of the operator.
    Create,
    /// Fails, because workspaces exist that depend on the missing secret.
    Refuse,
}

#[derive(Debug, thiserror::Error)]
pub enum ControlIdentityError {
    /// Long-lived secrets are missing, and the start must not create new ones.
    #[error("{}", lost_message(.data, .files))]
    Lost {
        data: PathBuf,
        /// The missing ones of [`LONG_LIVED_SECRETS`].
        files: Vec<&'static str>,
    },
    #[error(transparent)]
    File(#[from] SecretFileError),
    #[error("cannot create the control plane's certificate")]
    CreateCertificate(#[source] rcgen::Error),
    #[error("cannot use the control plane's certificate")]
    UseCertificate(#[source] rustls::Error),
    /// Agents that trust `ca.pem` would reject every certificate that the key signs.
    #[error(
        "agents that trust {authority} reject certificates that the key {key} signs; restore both \
         from the same backup, or delete {authority} to create it from the key: running agents \
         then cannot connect any more, and are restarted after 10 minutes",
        authority = authority.display(), key = key.display()
    )]
    Mismatch { authority: PathBuf, key: PathBuf },
}

/// The permissions and the lifetime of a new token.
#[derive(Debug, Clone)]
pub struct TokenGrant {
    pub verbs: Verbs,
    /// Workspaces that the token is restricted to. `None` copies the restriction of the caller's
    /// token.
    pub workspaces: Option<BTreeSet<WorkspaceId>>,
    /// The owner that the token acts for. `None` means the caller's owner; another owner requires
    /// the verb `admin`.
    pub owner: Option<Owner>,
    /// Lifetime. Shortened to [`MAX_TTL`] and to the expiry of the caller's token.
    pub ttl: Duration,
    /// Makes the token valid for direct calls to this workspace's agent only.
    pub agent: Option<WorkspaceId>,
}

/// A new token, signed with the control plane's current key.
#[derive(Debug, Clone)]
pub struct MintedToken {
    pub token: String,
    /// The principal that the token authenticates.
    pub caller: Principal,
}

/// The control plane's secrets, which are persisted in its data directory.
pub struct ControlIdentity {
    root: RootToken,
    root_owner: Owner,
    keys: SigningKeys,
    certificate: certificate::ControlCertificate,
    agent_tokens: AgentTokens,
}

impl ControlIdentity {
    /// Reads the secrets in the data directory `data`. Creates files that follow from others, and
    /// replaces a signing key or a certificate that is too old. Creates missing long-lived secrets
    /// as `missing` says.
    pub fn open(data: &Path, missing: MissingSecrets) -> Result<Self, ControlIdentityError> {
        let directory = data.join("control");
        secret_file::create_private_dir(data)?;
        secret_file::create_private_dir(&directory)?;
        let lost = lost_secrets(data);
        if !lost.is_empty() && missing == MissingSecrets::Refuse {
            return Err(ControlIdentityError::Lost { data: data.to_owned(), files: lost });
        }
        Ok(Self {
            root: RootToken::open(&root_token_file(data))?,
            // The constant is a valid owner; every test of this module parses it.
            root_owner: ROOT_OWNER.parse().expect("ROOT_OWNER is an owner"),
            keys: SigningKeys::open(&directory.join("token-keys.json"), now())?,
            certificate: certificate::ControlCertificate::open(&directory, SystemTime::now())?,
            agent_tokens: AgentTokens::default(),
        })
    }

    /// Verifies a token (the text after `Bearer`) and returns its principal. Fails with a reason
    /// `TOKEN_…`.
    pub fn authenticate(&self, token: Option<&str>) -> Result<Principal, WireError> {
        let token = token.filter(|t| !t.is_empty()).ok_or_else(|| {
            WireError::new(
                Reason::TokenMissing,
                "a token is required; send it as metadata \"authorization: Bearer <token>\"",
            )
        })?;
        if self.root.matches(token) {
            return Ok(Principal {
                owner: self.root_owner.clone(),
                verbs: Verbs::admin(),
                workspaces: None,
                expires: None,
            });
        }
        let claims = self.keys.verifying.verify(token, &Audience::Control, now())?;
        principal_from_claims(claims).ok_or_else(|| TokenError::Invalid.into())
    }

    /// Creates a token. Requires the verb `token`. Fails if the token would allow more than the
    /// caller's token.
    pub fn mint(&self, caller: &Principal, grant: TokenGrant) -> Result<MintedToken, WireError> {
        caller.may(Verb::Token)?;
        if let Some((_, name)) = podling_proto::verb::ALL
            .iter()
            .find(|(verb, _)| grant.verbs.include(&Verbs::only([*verb])) && !caller.verbs.allow(*verb))
        {
            let message =
                format!("cannot create a token with the verb {name:?}, because your token lacks that verb");
            return Err(WireError::new(Reason::VerbMissing, message).with("verb", name));
        }
        let owner = grant.owner.unwrap_or_else(|| caller.owner.clone());
        if owner != caller.owner {
            caller.may(Verb::Admin)?;
        }
        let workspaces = narrow_workspaces(caller, grant.workspaces)?;
        let iat = now();
        let requested = iat.saturating_add(grant.ttl.min(MAX_TTL).as_secs());
        let exp = caller.expires.map_or(requested, |end| requested.min(end));
        let claims = TokenClaims {
            sub: owner.to_string(),
            aud: grant.agent.map_or(Audience::Control, |id| Audience::Agent(id.to_string())),
            iat,
            exp,
            jti: token::random(12),
            verbs: grant.verbs.clone(),
            workspaces: workspaces.as_ref().map(|ids| ids.iter().map(ToString::to_string).collect()),
        };
        let token = self.keys.current.sign(&claims);
        Ok(MintedToken {
            token,
            caller: Principal { owner, verbs: grant.verbs, workspaces, expires: Some(exp) },
        })
    }

    /// Returns the `authorization` header of a call to a workspace's agent. Its token is valid for
    /// these verbs at this agent only, for at most five minutes.
    pub fn agent_token(&self, workspace: &WorkspaceId, owner: &Owner, verbs: &Verbs) -> HeaderValue {
        let now = now();
        self.agent_tokens.get(workspace, owner, verbs, now, |exp| {
            let token = self.keys.current.sign(&TokenClaims {
                sub: owner.to_string(),
                aud: Audience::Agent(workspace.to_string()),
                iat: now,
                exp,
                jti: token::random(12),
                verbs: verbs.clone(),
                workspaces: Some(vec![workspace.to_string()]),
            });
            // A signed token consists of base64 and dots.
            let mut value = HeaderValue::try_from(format!("Bearer {token}")).expect("a token is ASCII");
            value.set_sensitive(true);
            value
        })
    }

    /// Returns the public keys with which agents verify tokens. Every claim carries them.
    pub fn token_keys(&self) -> Arc<[TokenKey]> {
        self.keys.public.clone()
    }

    /// Returns the path of the CA certificate (PEM) with which agents verify the control plane.
    pub fn ca_file(&self) -> &Path {
        &self.certificate.ca_file
    }

    /// Returns the TLS configuration of the listener for agents.
    pub fn agents_tls(&self) -> Arc<rustls::ServerConfig> {
        self.certificate.server.clone()
    }
}

impl fmt::Debug for ControlIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlIdentity").field("keys", &self.keys.public).finish_non_exhaustive()
    }
}

/// Returns the entries of [`LONG_LIVED_SECRETS`] that do not exist in the data directory.
pub fn lost_secrets(data: &Path) -> Vec<&'static str> {
    LONG_LIVED_SECRETS.into_iter().filter(|name| !data.join(name).exists()).collect()
}

fn lost_message(data: &Path, files: &[&str]) -> String {
    format!(
        "{} missing in {}, but workspaces depend on {}; restore the data directory from a backup, or, if \
         there is no backup, start once with --create-missing-secrets: {}",
        files.join(" and ") + if files.len() == 1 { " is" } else { " are" },
        data.display(),
        if files.len() == 1 { "it" } else { "them" },
        consequences(files),
    )
}

/// Says what happens if these long-lived secrets are created anew. Names are entries of
/// [`LONG_LIVED_SECRETS`].
pub fn consequences(lost: &[&str]) -> String {
    let of = |name: &str| match name {
        ROOT_TOKEN => "there is a new root token",
        TOKEN_KEYS => "all tokens that were created before become invalid",
        _ => "running agents cannot connect any more, and are restarted after 10 minutes",
    };
    lost.iter().map(|name| of(name)).collect::<Vec<_>>().join("; ")
}

/// Describes a file of a long-lived secret that does not contain `what`. `secret` is an entry of
/// [`LONG_LIVED_SECRETS`].
fn unusable(path: &Path, secret: &str, content: &[u8], what: &'static str) -> SecretFileError {
    let problem = if content.trim_ascii().is_empty() { "is empty and " } else { "" };
    SecretFileError::Unusable { path: path.to_owned(), problem, what, consequence: consequences(&[secret]) }
}

/// Returns the path of the root token's file.
pub fn root_token_file(data: &Path) -> PathBuf {
    data.join(ROOT_TOKEN)
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn principal_from_claims(claims: TokenClaims) -> Option<Principal> {
    let workspaces = claims.workspaces.map(|ids| ids.iter().map(|id| id.parse()).collect());
    Some(Principal {
        owner: claims.sub.parse().ok()?,
        verbs: claims.verbs,
        workspaces: workspaces.transpose().ok()?,
        expires: Some(claims.exp),
    })
}

fn narrow_workspaces(
    caller: &Principal,
    requested: Option<BTreeSet<WorkspaceId>>,
) -> Result<Option<BTreeSet<WorkspaceId>>, WireError> {
    match (&caller.workspaces, requested) {
        (Some(own), Some(requested)) => match requested.iter().find(|id| !own.contains(id)) {
            Some(id) => {
                let message = format!(
                    "cannot create a token for {id}, because your token is restricted to other workspaces"
                );
                Err(WireError::new(Reason::WorkspaceDenied, message).with("id", id))
            }
            None => Ok(Some(requested)),
        },
        (own, requested) => Ok(requested.or_else(|| own.clone())),
    }
}

#[derive(PartialEq, Eq, Hash, Clone)]
struct AgentTokenKey {
    workspace: WorkspaceId,
    owner: Owner,
    verbs: String,
}

/// A cache of `authorization` headers with the expiry of their tokens.
#[derive(Default)]
struct AgentTokens(Mutex<HashMap<AgentTokenKey, (HeaderValue, u64)>>);

impl AgentTokens {
    /// Returns a cached header, or the result of `mint`, which is called with the expiry of a new
    /// token. Times are in seconds since 1970.
    fn get(
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

/// The root token's SHA-256; the token itself is not held in memory.
struct RootToken(Fingerprint);

impl RootToken {
    /// Reads the token's file, or creates it with a new token.
    fn open(path: &Path) -> Result<Self, SecretFileError> {
        let text = match secret_file::read(path)? {
            Some(content) => Self::parse(&content)
                .map(str::to_owned)
                .ok_or_else(|| unusable(path, ROOT_TOKEN, &content, "a root token"))?,
            None => {
                let text = format!("{PREFIX}{}", token::random(BYTES));
                secret_file::write(path, format!("{text}\n").as_bytes())?;
                text
            }
        };
        Ok(Self(Fingerprint::of(text.as_bytes())))
    }

    /// Returns the token in the content of its file. `None` if the content is not a root token.
    fn parse(content: &[u8]) -> Option<&str> {
        let text = std::str::from_utf8(content).ok()?.trim();
        text.strip_prefix(PREFIX).filter(|rest| rest.len() >= BYTES).map(|_| text)
    }

    fn matches(&self, text: &str) -> bool {
        self.0.matches(&Fingerprint::of(text.as_bytes()))
    }
}

struct SigningKeys {
    current: SigningKey,
    /// The public keys, with the ids that tokens name in their header (`kid`).
    public: Arc<[TokenKey]>,
    verifying: VerifyingKeys,
}

/// One entry of the key file. The newest key comes first.
#[derive(Serialize, Deserialize)]
struct StoredKey {
    /// In seconds since 1970.
    created: u64,
    pkcs8: String,
}

impl StoredKey {
    fn decode(&self) -> Option<SigningKey> {
        SigningKey::from_pkcs8(&BASE64.decode(&self.pkcs8).ok()?)
    }
}

impl SigningKeys {
    /// Reads the keys from the file `path`. Creates a new signing key if there is none, or if the
    /// newest is too old at `now` (seconds since 1970).
    fn open(path: &Path, now: u64) -> Result<Self, SecretFileError> {
        let content = secret_file::read(path)?;
        let unusable = || unusable(path, TOKEN_KEYS, content.as_deref().unwrap_or_default(), "token keys");
        let mut stored = match &content {
            Some(content) => Self::parse(content).ok_or_else(unusable)?,
            None => VecDeque::new(),
        };
        if stored.front().is_none_or(|key| now.saturating_sub(key.created) >= KEY_LIFETIME.as_secs()) {
            let (_, pkcs8) = SigningKey::generate().ok_or_else(unusable)?;
            stored.push_front(StoredKey { created: now, pkcs8: BASE64.encode(pkcs8) });
            stored.truncate(MAX_KEYS);
            let json = serde_json::to_vec(&stored).map_err(|_| unusable())?;
            secret_file::write(path, &json)?;
        }
        let mut keys =
            stored.iter().map(StoredKey::decode).collect::<Option<VecDeque<_>>>().ok_or_else(unusable)?;
        let public =
            |key: &SigningKey| TokenKey { id: key.id().to_owned(), public_key: key.public_key().to_vec() };
        let public: Arc<[_]> = keys.iter().map(public).collect();
        let verifying = VerifyingKeys::new(public.iter().map(|key| (key.id.clone(), key.public_key.clone())));
        Ok(Self { current: keys.pop_front().ok_or_else(unusable)?, public, verifying })
    }

    /// Returns the keys in the content of their file. `None` if it contains none, or one that cannot
    /// be used.
    fn parse(content: &[u8]) -> Option<VecDeque<StoredKey>> {
        let stored: VecDeque<StoredKey> = serde_json::from_slice(content).ok()?;
        (!stored.is_empty() && stored.iter().all(|key| key.decode().is_some())).then_some(stored)
    }
}
