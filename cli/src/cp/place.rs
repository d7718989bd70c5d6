//! Where from and where to: `NAME:path` is in a workspace, `-` is stdin or stdout, anything else is here. Pure.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::PathBuf,
};

use podling_proto::agent::v1::{Path as WirePath, path};

/// One side of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Standard input or output.
    Stdio,
    /// A path on this machine.
    Here(PathBuf),
    /// A path in a workspace.
    There {
        /// The workspace's name or id.
        workspace: String,
        /// Below its root.
        path: RemotePath,
        /// It was written with a slash at its end: a folder is meant.
        folder: bool,
    },
}

/// A path below a workspace's root, without leading, trailing or doubled slashes; the root itself is empty.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RemotePath(OsString);

/// Why an argument names no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPlace {
    /// Absolute.
    #[error("{0:?}: paths in a workspace are relative to its root; leave the leading \"/\" out")]
    Absolute(String),
    /// Upwards.
    #[error("{0:?}: a path in a workspace cannot hold \"..\"")]
    Parent(String),
    /// Nothing.
    #[error("a place to copy from or to cannot be empty")]
    Empty,
}

impl Place {
    /// Reads an argument. A colon behind a name makes it a workspace's; `./a:b` is a file here.
    pub fn parse(argument: &OsStr) -> Result<Self, BadPlace> {
        let bytes = argument.as_bytes();
        match bytes {
            b"" => return Err(BadPlace::Empty),
            b"-" => return Ok(Self::Stdio),
            _ => {}
        }
        let is_name = |name: &[u8]| {
            !name.is_empty()
                && name.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
        };
        let colon = bytes.iter().position(|b| *b == b':').filter(|at| is_name(&bytes[..*at]));
        let Some(colon) = colon else { return Ok(Self::Here(argument.into())) };
        let (name, path) = (&bytes[..colon], &bytes[colon + 1..]);
        Ok(Self::There {
            workspace: String::from_utf8_lossy(name).into_owned(),
            path: RemotePath::parse(path)?,
            folder: path.ends_with(b"/"),
        })
    }
}

impl RemotePath {
    /// Reads a path as people write it.
    pub fn parse(path: &[u8]) -> Result<Self, BadPlace> {
        let shown = || String::from_utf8_lossy(path).into_owned();
        if path.starts_with(b"/") {
            return Err(BadPlace::Absolute(shown()));
        }
        let mut parsed = Self(OsString::new());
        for part in path.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".") {
            if part == b".." {
                return Err(BadPlace::Parent(shown()));
            }
            parsed = parsed.join(OsStr::from_bytes(part));
        }
        Ok(parsed)
    }

    /// What is called `name` in this folder.
    #[must_use]
    pub fn join(&self, name: &OsStr) -> Self {
        let mut path = self.0.clone();
        if !path.is_empty() {
            path.push("/");
        }
        path.push(name);
        Self(path)
    }

    /// Its last part; the root has none.
    pub fn name(&self) -> Option<OsString> {
        let bytes = self.0.as_bytes();
        let name = bytes.rsplit(|b| *b == b'/').next().filter(|name| !name.is_empty())?;
        Some(OsString::from_vec(name.to_vec()))
    }

    /// The folder it is in; the root is in none.
    pub fn parent(&self) -> Option<Self> {
        let bytes = self.0.as_bytes();
        let end = bytes.iter().rposition(|b| *b == b'/').unwrap_or(0);
        (!bytes.is_empty()).then(|| Self(OsString::from_vec(bytes[..end].to_vec())))
    }

    /// For people.
    pub fn show(&self) -> String {
        crate::output::plain(&self.0.to_string_lossy())
    }

    /// For the wire.
    pub fn wire(&self) -> WirePath {
        let path = match self.0.to_str() {
            Some(text) => path::Path::Text(text.to_owned()),
            None => path::Path::Raw(self.0.as_bytes().to_vec()),
        };
        WirePath { path: Some(path) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(text: &str) -> Result<Place, BadPlace> {
        Place::parse(OsStr::new(text))
    }

    fn there(workspace: &str, path: &str, folder: bool) -> Place {
        Place::There { workspace: workspace.to_owned(), path: RemotePath(path.into()), folder }
    }

    #[test]
    fn a_name_and_a_colon_mean_a_workspace() {
        assert_eq!(place("demo:src/main.rs"), Ok(there("demo", "src/main.rs", false)));
        assert_eq!(place("demo:"), Ok(there("demo", "", false)));
        assert_eq!(place("demo:./a//b/"), Ok(there("demo", "a/b", true)));
        assert_eq!(place("demo:a:b"), Ok(there("demo", "a:b", false)));
    }

    #[test]
    fn anything_else_is_here() {
        for text in ["file", "./a:b", "/a:b", "dir/", "Upper:case", ":x", "a b:c"] {
            assert_eq!(place(text), Ok(Place::Here(text.into())));
        }
        assert_eq!(place("-"), Ok(Place::Stdio));
    }

    #[test]
    fn a_path_cannot_leave_the_workspace() {
        assert!(matches!(place("demo:/etc/passwd"), Err(BadPlace::Absolute(_))));
        assert!(matches!(place("demo:a/../../b"), Err(BadPlace::Parent(_))));
        assert_eq!(place(""), Err(BadPlace::Empty));
    }

    #[test]
    fn names_that_are_not_utf8_travel_as_bytes() {
        let root = RemotePath(OsString::new());
        let odd = root.join(OsStr::from_bytes(b"\xff"));
        assert_eq!(odd.wire().path, Some(path::Path::Raw(vec![0xff])));
        assert_eq!(odd.name(), Some(OsString::from_vec(vec![0xff])));
        assert_eq!(root.name(), None);
    }

    proptest! {
        #[test]
        fn whatever_is_written_stays_below_the_root(path in "[a./]{0,12}") {
            if let Ok(Place::There { path, .. }) = place(&format!("demo:{path}")) {
                let text = path.0.to_str().expect("ASCII");
                prop_assert!(!text.starts_with('/') && !text.ends_with('/') && !text.contains("//"));
                prop_assert!(text.split('/').all(|part| part != ".." && part != "."));
            }
        }
    }
}
