//! The root token: random, opaque and created at the first start. It allows everything, so only the
//! user of the control plane may read its file.

use std::path::Path;

use podling_proto::token;
use ring::digest::{SHA256, digest};

use super::secret_file::{self, SecretFileError};

/// Prefix by which people and secret scanners recognise the token as Podling's.
const PREFIX: &str = "podling_";
/// Random bytes in a token.
const BYTES: usize = 32;

/// The root token's SHA-256; the token itself is not held in memory.
pub(super) struct RootToken([u8; 32]);

impl RootToken {
    /// Reads the token's file, or creates it with a new token.
    pub(super) fn open(path: &Path) -> Result<Self, SecretFileError> {
        let text = match secret_file::read(path)? {
            Some(content) => String::from_utf8(content)
                .ok()
                .map(|text| text.trim().to_owned())
                .filter(|text| text.strip_prefix(PREFIX).is_some_and(|rest| rest.len() >= BYTES))
                .ok_or(SecretFileError::Unusable { path: path.to_owned(), what: "a root token" })?,
            None => {
                let text = format!("{PREFIX}{}", token::random(BYTES));
                secret_file::write(path, format!("{text}\n").as_bytes())?;
                text
            }
        };
        Ok(Self(hash(&text)))
    }

    /// Returns whether `text` is the root token. Compares hashes in constant time.
    pub(super) fn matches(&self, text: &str) -> bool {
        let other = hash(text);
        self.0.iter().zip(other).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
    }
}

fn hash(text: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest(&SHA256, text.as_bytes()).as_ref());
    bytes
}
