//! Parses the key that detaches from a terminal: a control character, written as `ctrl-]` or `^]`,
//! or `none`.

use std::{fmt, str::FromStr};

/// The escape key of telnet. Shells and editors use it less than other control keys.
pub const DEFAULT: &str = "ctrl-]";

/// Control character of the detach key. `None` disables detaching by key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DetachKey(pub Option<u8>);

/// Error for a text that is not a valid detach key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a valid detach key; write ctrl- and one of a-z @ \\ ] ^ _, or none")]
pub struct DetachKeyError(String);

impl FromStr for DetachKey {
    type Err = DetachKeyError;

    fn from_str(text: &str) -> Result<Self, DetachKeyError> {
        let lower = text.to_ascii_lowercase();
        if lower == "none" {
            return Ok(Self(None));
        }
        let key = lower.strip_prefix("ctrl-").or_else(|| lower.strip_prefix('^'));
        match key.map(str::as_bytes) {
            // Ctrl-[ is Escape, which begins every reply of the emulator.
            Some([key @ (b'a'..=b'z' | b'@' | b'\\'..=b'_')]) => Ok(Self(Some(key & 0x1f))),
            _ => Err(DetachKeyError(text.to_owned())),
        }
    }
}

impl fmt::Display for DetachKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(key) => write!(f, "Ctrl-{}", char::from(key | 0x40)),
            None => f.write_str("no key"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detach_key_accepts_every_spelling() {
        for (text, key, shown) in [
            ("ctrl-]", 0x1d, "Ctrl-]"),
            ("^]", 0x1d, "Ctrl-]"),
            ("Ctrl-A", 1, "Ctrl-A"),
            ("^^", 0x1e, "Ctrl-^"),
        ] {
            let parsed: DetachKey = text.parse().expect("a key");
            assert_eq!((parsed.0, parsed.to_string().as_str()), (Some(key), shown));
        }
        assert_eq!("none".parse(), Ok(DetachKey(None)));
        for text in ["", "]", "ctrl-", "ctrl-[", "ctrl-1", "alt-x", "ctrl-ab"] {
            assert!(text.parse::<DetachKey>().is_err(), "{text}");
        }
        assert!(DEFAULT.parse::<DetachKey>().is_ok());
    }
}
