//! Ids: what names a terminal, and what a client names itself.

use std::sync::Arc;

use super::TerminalError;

/// Longest client id, in bytes.
const MAX_CLIENT_ID_BYTES: usize = 64;

/// Twelve characters, unique within the workspace for ever.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TerminalId(Arc<str>);

/// The name a client gave itself, kept over its reconnects.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClientId(Arc<str>);

impl TerminalId {
    pub(super) fn random() -> Self {
        const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        Self((0..12).map(|_| char::from(ALPHABET[fastrand::usize(..32)])).collect::<String>().into())
    }

    /// As on the wire. Any text may be asked for; a wrong one is not found.
    pub fn new(id: &str) -> Self {
        Self(id.into())
    }

    /// As on the wire.
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
    /// 1 to 64 bytes.
    pub fn new(id: impl AsRef<str>) -> Result<Self, TerminalError> {
        let id = id.as_ref();
        if id.is_empty() || id.len() > MAX_CLIENT_ID_BYTES {
            return Err(TerminalError::BadField { field: "client_id", allowed: "1 to 64 characters" });
        }
        Ok(Self(id.into()))
    }
}
