//! Parses the source and the destination of a copy. `NAME:PATH` is in a workspace, `-` is stdin or
//! stdout, and anything else is a local path. Pure.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use podling_proto::agent::v1::{Path as WirePath, path};

use crate::{failure::CommandFailure, output};

/// Characters in the id of a workspace.
const ID_LENGTH: usize = 12;

/// Source or destination of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyEndpoint {
    /// Standard input as source, standard output as destination.
    Stdio,
    Local(PathBuf),
    Remote {
        /// Name or id of the workspace.
        workspace: String,
        /// Path as [`parse_remote`] returns it.
        path: PathBuf,
        /// True if the path ends with a slash, which means a directory.
        is_directory: bool,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CopyEndpointError {
    #[error(
        "{0:?} is absolute; write the path relative to the root of the workspace without a leading \"/\""
    )]
    Absolute(String),
    #[error("{0:?} contains \"..\"; write the path relative to the root of the workspace")]
    Parent(String),
    #[error("the source or destination is empty; write NAME:PATH, a local path, or \"-\"")]
    Empty,
}

impl From<CopyEndpointError> for CommandFailure {
    fn from(error: CopyEndpointError) -> Self {
        Self::Usage(error.to_string())
    }
}

impl CopyEndpoint {
    /// Parses an argument. An argument that begins with a workspace's name and a colon is remote.
    /// Thus `./a:b` is a local file.
    pub fn parse(argument: &OsStr) -> Result<Self, CopyEndpointError> {
        let bytes = argument.as_bytes();
        match bytes {
            b"" => return Err(CopyEndpointError::Empty),
            b"-" => return Ok(Self::Stdio),
            _ => {}
        }
        let colon = bytes.iter().position(|b| *b == b':').filter(|at| can_be_workspace(&bytes[..*at]));
        let Some(colon) = colon else { return Ok(Self::Local(argument.into())) };
        let (name, path) = (&bytes[..colon], &bytes[colon + 1..]);
        Ok(Self::Remote {
            workspace: String::from_utf8_lossy(name).into_owned(),
            path: parse_remote(path)?,
            is_directory: path.ends_with(b"/"),
        })
    }
}

/// Returns whether this can be the name or the id of a workspace. A name begins with a letter. An id
/// has twelve characters of base32 and may begin with a digit.
fn can_be_workspace(text: &[u8]) -> bool {
    let is_name = text.first().is_some_and(u8::is_ascii_lowercase)
        && text.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-');
    let is_id = text.len() == ID_LENGTH && text.iter().all(|b| matches!(b, b'a'..=b'z' | b'2'..=b'7'));
    is_name || is_id
}

/// Parses a path in a workspace as a user types it. The result is relative to the root of the
/// workspace, and empty for the root itself. Rejects an absolute path and `..`.
pub fn parse_remote(path: &[u8]) -> Result<PathBuf, CopyEndpointError> {
    let shown = || String::from_utf8_lossy(path).into_owned();
    if path.starts_with(b"/") {
        return Err(CopyEndpointError::Absolute(shown()));
    }
    let parts = path.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".");
    if parts.clone().any(|part| part == b"..") {
        return Err(CopyEndpointError::Parent(shown()));
    }
    Ok(parts.map(OsStr::from_bytes).collect())
}

/// Converts a path in a workspace to protobuf, as bytes if it is not valid UTF-8.
pub fn to_wire(path: &Path) -> WirePath {
    let path = match path.to_str() {
        Some(text) => path::Path::Text(text.to_owned()),
        None => path::Path::Raw(path.as_os_str().as_bytes().to_vec()),
    };
    WirePath { path: Some(path) }
}

/// Renders a path for display. Replaces control characters and invalid UTF-8.
pub fn show(path: &Path) -> String {
    output::plain(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(text: &str) -> Result<CopyEndpoint, CopyEndpointError> {
        CopyEndpoint::parse(OsStr::new(text))
    }

    fn remote(workspace: &str, path: &str, is_directory: bool) -> CopyEndpoint {
        CopyEndpoint::Remote { workspace: workspace.to_owned(), path: path.into(), is_directory }
    }

    #[test]
    fn endpoint_with_name_and_colon_is_remote() {
        assert_eq!(place("demo:src/main.rs"), Ok(remote("demo", "src/main.rs", false)));
        assert_eq!(place("demo:"), Ok(remote("demo", "", false)));
        assert_eq!(place("demo:./a//b/"), Ok(remote("demo", "a/b", true)));
        assert_eq!(place("demo:a:b"), Ok(remote("demo", "a:b", false)));
        assert_eq!(place("2abcdefghij7:a"), Ok(remote("2abcdefghij7", "a", false)));
    }

    #[test]
    fn endpoint_without_workspace_name_is_local() {
        for text in
            ["file", "./a:b", "/a:b", "dir/", "Upper:case", ":x", "a b:c", "2019-01-02:x", "12:30", "-a:b"]
        {
            assert_eq!(place(text), Ok(CopyEndpoint::Local(text.into())));
        }
        assert_eq!(place("-"), Ok(CopyEndpoint::Stdio));
    }

    #[test]
    fn remote_path_outside_root_is_rejected() {
        assert!(matches!(place("demo:/etc/passwd"), Err(CopyEndpointError::Absolute(_))));
        assert!(matches!(place("demo:a/../../b"), Err(CopyEndpointError::Parent(_))));
        assert_eq!(place(""), Err(CopyEndpointError::Empty));
    }

    #[test]
    fn remote_path_without_utf8_is_sent_as_bytes() {
        let root = parse_remote(b"").expect("the root");
        let odd = root.join(OsStr::from_bytes(b"\xff"));
        assert_eq!(to_wire(&odd).path, Some(path::Path::Raw(vec![0xff])));
        assert_eq!(to_wire(&root).path, Some(path::Path::Text(String::new())));
        assert_eq!(root.file_name(), None);
    }

    proptest! {
        #[test]
        fn parsed_remote_path_stays_below_root(path in "[a./]{0,12}") {
            if let Ok(CopyEndpoint::Remote { path, .. }) = place(&format!("demo:{path}")) {
                let text = path.to_str().expect("ASCII");
                prop_assert!(!text.starts_with('/') && !text.ends_with('/') && !text.contains("//"));
                prop_assert!(text.split('/').all(|part| part != ".." && part != "."));
            }
        }
    }
}
