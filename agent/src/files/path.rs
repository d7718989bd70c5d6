//! Paths as clients write them, relative to the workspace root. Parsing rejects malformed paths,
//! but the kernel confines them (see `root`).

use std::{ffi::OsStr, fmt, os::unix::ffi::OsStrExt};

/// A path relative to the workspace root, without empty parts, "." and "..". The empty path is the
/// root.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RelPath(Vec<u8>);

/// Reason why a path of a client is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    #[error("is absolute; give it relative to the workspace root")]
    Absolute,
    #[error("contains \"..\"; give it relative to the workspace root")]
    DotDot,
    #[error("contains a NUL byte")]
    Nul,
    #[error("is too long; use at most 4,095 bytes, and 255 bytes for each part")]
    TooLong,
    /// The operation needs an entry below the root.
    #[error("is the workspace root itself; give an entry below it")]
    Root,
}

/// The kernel's PATH_MAX without its terminating NUL, in bytes.
const MAX_BYTES: usize = 4095;

impl RelPath {
    pub const ROOT: Self = Self(Vec::new());

    /// Parses a path as a client wrote it.
    pub fn parse(path: impl AsRef<[u8]>) -> Result<Self, BadPath> {
        let path = path.as_ref();
        if path.first() == Some(&b'/') {
            return Err(BadPath::Absolute);
        }
        if path.contains(&0) {
            return Err(BadPath::Nul);
        }
        let mut parts = Vec::with_capacity(path.len());
        for part in path.split(|b| *b == b'/') {
            match part {
                b"" | b"." => {}
                b".." => return Err(BadPath::DotDot),
                _ => {
                    if !parts.is_empty() {
                        parts.push(b'/');
                    }
                    parts.extend_from_slice(part);
                }
            }
        }
        if parts.len() > MAX_BYTES {
            return Err(BadPath::TooLong);
        }
        Ok(Self(parts))
    }

    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Iterates over the parts of the path, outermost first.
    pub fn parts(&self) -> impl DoubleEndedIterator<Item = &OsStr> {
        self.0.split(|b| *b == b'/').filter(|part| !part.is_empty()).map(OsStr::from_bytes)
    }

    /// Splits the path into the parent directory and the name in it. Returns `None` for the root.
    pub fn split(&self) -> Option<(Self, &OsStr)> {
        if self.is_root() {
            return None;
        }
        let at = self.0.iter().rposition(|b| *b == b'/');
        let (directory, name) = at.map_or((&[][..], &self.0[..]), |at| (&self.0[..at], &self.0[at + 1..]));
        Some((Self(directory.to_vec()), OsStr::from_bytes(name)))
    }

    /// Iterates over the directories above the path, outermost first, without the root.
    pub fn ancestors(&self) -> impl Iterator<Item = Self> {
        self.0.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| Self(self.0[..at].to_vec()))
    }

    /// Returns the path for system calls, which is "." for the root.
    pub(super) fn as_os_str(&self) -> &OsStr {
        if self.is_root() { OsStr::new(".") } else { OsStr::from_bytes(&self.0) }
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.as_os_str().to_string_lossy())
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_os_str(), f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn path_parsing_normalises_and_rejects() {
        let parse = |p: &str| RelPath::parse(p).map(|p| p.to_string());
        assert_eq!(parse("a//b/./c/"), Ok("a/b/c".into()));
        assert_eq!(parse(""), Ok(".".into()));
        assert_eq!(parse("./."), Ok(".".into()));
        assert_eq!(parse("..a/b.."), Ok("..a/b..".into()), "two dots are harmless inside a name");
        assert_eq!(parse("/etc/passwd"), Err(BadPath::Absolute));
        assert_eq!(parse("a/../b"), Err(BadPath::DotDot));
        assert_eq!(parse("a\0b"), Err(BadPath::Nul));
        assert_eq!(parse(&"x/".repeat(3000)), Err(BadPath::TooLong));
    }

    proptest! {
        #[test]
        fn parsed_path_has_plain_parts_and_reparses(
            bytes in prop::collection::vec(prop_oneof![Just(b'/'), Just(b'.'), any::<u8>()], 0..64),
        ) {
            if let Ok(path) = RelPath::parse(&bytes) {
                for part in path.parts() {
                    prop_assert!(!matches!(part.as_bytes(), b"" | b"." | b".."));
                    prop_assert!(!part.as_bytes().iter().any(|b| matches!(b, b'/' | 0)));
                }
                prop_assert_eq!(RelPath::parse(path.as_os_str().as_bytes()), Ok(path.clone()));
                if let Some((directory, name)) = path.split() {
                    let joined = [directory.as_os_str().as_bytes(), b"/", name.as_bytes()].concat();
                    prop_assert_eq!(RelPath::parse(joined), Ok(path.clone()));
                    prop_assert_eq!(path.ancestors().last().unwrap_or(RelPath::ROOT), directory);
                }
            }
        }
    }
}
