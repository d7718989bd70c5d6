//! Ids of terminals, which the agent generates, and of clients, which choose their own.

use std::sync::Arc;

use super::TerminalError;

/// Longest client id, in bytes.
const MAX_CLIENT_ID_BYTES: usize = 64;

/// Identifies a terminal within the workspace. Twelve random characters of lower-case base32.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TerminalId(Arc<str>);

/// Identifier that a client chose for itself and uses across reconnects.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClientId(Arc<str>);

impl TerminalId {
    pub(super) fn random() -> Self {
        const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        Self((0..12).map(|_| char::from(ALPHABET[fastrand::usize(..32)])).collect::<String>().into())
    }

    /// Wraps an id from the wire without validation; an unknown id leads to `NotFound`.
    pub fn new(id: &str) -> Self {
        Self(id.into())
    }

    /// Returns the id as sent on the wire.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for TerminalId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl ClientId {
    /// Returns an error unless the id has 1 to 64 bytes.
    pub fn new(id: impl AsRef<str>) -> Result<Self, TerminalError> {
        let id = id.as_ref();
        if id.is_empty() || id.len() > MAX_CLIENT_ID_BYTES {
            return Err(TerminalError::BadField { field: "client_id", allowed: "1 to 64 bytes long" });
        }
        Ok(Self(id.into()))
    }
}
