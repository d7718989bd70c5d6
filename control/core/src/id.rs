//! Ids and names, validated when they are parsed.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Characters of an id: base32 of RFC 4648 in lower case.
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
/// Length of an id in characters, each of which encodes 5 bits.
pub const ID_CHARS: usize = 12;

/// The error for a text that is not a valid id, name or owner.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidIdentifier {
    #[error("{0:?} is not a valid workspace id; an id has 12 characters of a-z and 2-7")]
    Id(String),
    #[error(
        "{0:?} is not a valid workspace name; use 1 to 63 characters of a-z, 0-9 and \"-\", beginning with \
         a letter and not ending with \"-\""
    )]
    Name(String),
    #[error("{0:?} is not a valid owner name; use 1 to 100 characters of a-z, A-Z, 0-9 and \"-_.@\"")]
    Owner(String),
}

/// Id of a workspace; never reused.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WorkspaceId(String);

/// Name of a workspace. Unique among the owner's workspaces that are not deleted.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WorkspaceName(String);

/// Name of the user or service that owns a workspace.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Owner(String);

impl WorkspaceId {
    /// Encodes the low 60 bits as an id. The caller supplies random bits.
    pub fn from_bits(bits: u64) -> Self {
        let letter = |i: usize| char::from(ALPHABET[(bits >> (5 * i)) as usize & 31]);
        Self((0..ID_CHARS).map(letter).collect())
    }

    /// Returns the 60 bits that the id encodes.
    pub fn bits(&self) -> u64 {
        let value = |letter: u8| ALPHABET.iter().position(|b| *b == letter).unwrap_or_default() as u64;
        self.0.bytes().rev().fold(0, |bits, letter| bits << 5 | value(letter))
    }
}

fn is_id(text: &str) -> bool {
    text.len() == ID_CHARS && text.bytes().all(|b| ALPHABET.contains(&b))
}

fn is_name(text: &str) -> bool {
    text.len() <= 63
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && !text.ends_with('-')
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn is_owner(text: &str) -> bool {
    (1..=100).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.@".contains(&b))
}

macro_rules! parsed {
    ($type:ident, $check:ident, $error:ident) => {
        impl $type {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $type {
            type Err = InvalidIdentifier;
            fn from_str(text: &str) -> Result<Self, InvalidIdentifier> {
                if $check(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(InvalidIdentifier::$error(text.to_owned()))
                }
            }
        }
        impl TryFrom<String> for $type {
            type Error = InvalidIdentifier;
            fn try_from(text: String) -> Result<Self, InvalidIdentifier> {
                text.parse()
            }
        }
        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.0
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

parsed!(WorkspaceId, is_id, Id);
parsed!(WorkspaceName, is_name, Name);
parsed!(Owner, is_owner, Owner);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_must_be_a_dns_label() {
        for good in ["a", "demo", "a-1", "x23456789"] {
            assert!(good.parse::<WorkspaceName>().is_ok(), "{good}");
        }
        for bad in ["", "1a", "-a", "a-", "A", "ä", "a_b", "a/b", &"a".repeat(64)] {
            assert!(bad.parse::<WorkspaceName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn id_survives_round_trip_through_bits() {
        for bits in [0, u64::MAX, 0x1234_5678_9abc_def0] {
            let id = WorkspaceId::from_bits(bits);
            assert_eq!(id.bits(), bits & ((1 << 60) - 1));
            assert_eq!(id.as_str().parse(), Ok(id));
        }
    }
}
