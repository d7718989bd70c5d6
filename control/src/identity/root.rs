//! The root token: random, opaque, made at the first start. Whoever may read its file may do everything.

use std::path::Path;

use podling_proto::token;
use ring::digest::{SHA256, digest};

use super::secret_file::{self, SecretFileError};

/// Marks the token as one of ours, so that people and secret scanners know what they found.
const PREFIX: &str = "podling_";
/// Randomness in it, bytes.
const BYTES: usize = 32;

/// What is kept of the root token in memory.
pub(super) struct RootToken([u8; 32]);

impl RootToken {
    /// Reads the token's file, or makes token and file.
    pub(super) fn open(path: &Path) -> Result<Self, SecretFileError> {
        let text = match secret_file::read(path)? {
            Some(content) => String::from_utf8(content)
                .ok()
                .map(|text| text.trim().to_owned())
                .filter(|text| text.strip_prefix(PREFIX).is_some_and(|rest| rest.len() >= BYTES))
                .ok_or(SecretFileError::Unusable { path: path.to_owned(), what: "root token" })?,
            None => {
                let text = format!("{PREFIX}{}", token::random(BYTES));
                secret_file::write(path, format!("{text}\n").as_bytes())?;
                text
            }
        };
        Ok(Self(hash(&text)))
    }

    /// Whether this is it. Takes the same time whatever differs.
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
