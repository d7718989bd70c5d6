//! The control plane's identity: the root token, signing keys for tokens, and the certificate that
//! agents verify.
//!
//! Independent of the transport. Edges pass the text of a token and get a [`Principal`] or an
//! error.

use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::HeaderValue;
use podling_core::id::{Owner, WorkspaceId};
use podling_proto::{
    error::{Reason, WireError},
    token::{self, Audience, TokenClaims, TokenError},
    v1::Verb,
    verb::Verbs,
};

use crate::principal::Principal;

mod agent;
pub(crate) mod certificate;
mod root;
pub mod secret_file;
mod signing;

pub use certificate::{CertificateError, server_config};
pub use secret_file::SecretFileError;
pub use signing::PublicTokenKey;

/// Longest lifetime of a token.
pub const MAX_TTL: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// The owner that the root token acts for.
const ROOT_OWNER: &str = "root";

#[derive(Debug, thiserror::Error)]
pub enum ControlIdentityError {
    #[error(transparent)]
    File(#[from] SecretFileError),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

/// What a new token allows.
#[derive(Debug, Clone)]
pub struct TokenGrant {
    pub verbs: Verbs,
    /// `None`: all workspaces of the caller's token.
    pub workspaces: Option<BTreeSet<WorkspaceId>>,
    /// The owner that the token acts for; `None`: the caller's.
    pub owner: Option<Owner>,
    /// Lifetime, limited by the end of the caller's own token.
    pub ttl: Duration,
    /// Makes the token valid for direct calls to this workspace's agent only.
    pub agent: Option<WorkspaceId>,
}

/// A new token and what it allows.
#[derive(Debug, Clone)]
pub struct MintedToken {
    pub token: String,
    /// The principal that the token authenticates.
    pub caller: Principal,
}

/// The control plane's secrets, which are files in its data directory.
pub struct ControlIdentity {
    root: root::RootToken,
    root_owner: Owner,
    keys: signing::SigningKeys,
    certificate: certificate::ControlCertificate,
    agent_tokens: agent::AgentTokens,
}

impl ControlIdentity {
    /// Reads the secrets in `data` and creates missing ones.
    pub fn open(data: &Path) -> Result<Self, ControlIdentityError> {
        let folder = data.join("control");
        secret_file::create_private_dir(data)?;
        secret_file::create_private_dir(&folder)?;
        Ok(Self {
            root: root::RootToken::open(&root_token_file(data))?,
            // The constant is a valid owner; every test of this module parses it.
            root_owner: ROOT_OWNER.parse().expect("ROOT_OWNER is an owner"),
            keys: signing::SigningKeys::open(&folder.join("token-keys.json"), now())?,
            certificate: certificate::ControlCertificate::open(&folder, SystemTime::now())?,
            agent_tokens: agent::AgentTokens::default(),
        })
    }

    /// Verifies a token, which is the text after `Bearer`, and returns its principal.
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
        let claims = self.keys.verifying.verify(token, &Audience::Control, now()).map_err(rejected_token)?;
        principal_from_claims(claims).ok_or_else(|| rejected_token(TokenError::Invalid))
    }

    /// Creates a token. It allows no more than the caller's own.
    pub fn mint(&self, caller: &Principal, grant: TokenGrant) -> Result<MintedToken, WireError> {
        caller.may(Verb::Token)?;
        if let Some((_, name)) = podling_proto::verb::ALL
            .iter()
            .find(|(verb, _)| grant.verbs.include(&Verbs::only([*verb])) && !caller.verbs.allow(*verb))
        {
            let message =
                format!("a new token cannot allow more than the token that creates it, which lacks {name:?}");
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
        let token = self.keys.sign(&claims);
        Ok(MintedToken {
            token,
            caller: Principal { owner, verbs: grant.verbs, workspaces, expires: Some(exp) },
        })
    }

    /// Returns the `authorization` header of a call to a workspace's agent. Its token is valid for
    /// these verbs at this agent only.
    pub fn agent_token(&self, workspace: &WorkspaceId, owner: &Owner, verbs: &Verbs) -> HeaderValue {
        let now = now();
        self.agent_tokens.get(workspace, owner, verbs, now, |exp| {
            let token = self.keys.sign(&TokenClaims {
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

    /// The public keys that agents verify tokens with. Every claim carries them.
    pub fn token_keys(&self) -> &[PublicTokenKey] {
        &self.keys.public
    }

    /// The CA certificate (PEM) that agents verify the control plane with.
    pub fn ca_file(&self) -> &Path {
        &self.certificate.ca_file
    }

    /// TLS configuration of the listener for agents.
    pub fn agents_tls(&self) -> Arc<rustls::ServerConfig> {
        self.certificate.server.clone()
    }
}

impl fmt::Debug for ControlIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlIdentity").field("keys", &self.keys.public).finish_non_exhaustive()
    }
}

/// The path of the root token's file.
pub fn root_token_file(data: &Path) -> PathBuf {
    data.join("root-token")
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
                let message =
                    format!("the token that creates this one is restricted to workspaces other than {id}");
                Err(WireError::new(Reason::WorkspaceDenied, message).with("id", id))
            }
            None => Ok(Some(requested)),
        },
        (own, requested) => Ok(requested.or_else(|| own.clone())),
    }
}

fn rejected_token(error: TokenError) -> WireError {
    match error {
        TokenError::Invalid => WireError::new(
            Reason::TokenInvalid,
            "the token is not valid here: it was modified, or another control plane created it",
        ),
        TokenError::Expired { at } => {
            let at = prost_types::Timestamp { seconds: i64::try_from(at).unwrap_or(i64::MAX), nanos: 0 };
            WireError::new(Reason::TokenExpired, format!("the token expired at {at}")).with("expired_at", at)
        }
        TokenError::Foreign => WireError::new(
            Reason::TokenForeign,
            "the token was created for an agent and is not valid at the control plane",
        ),
    }
}

#[cfg(test)]
mod tests;
