//! The source of a copy: a directory tree on this machine or in a workspace.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, FileType},
    os::unix::{ffi::OsStringExt as _, fs::MetadataExt as _},
    path::Path,
};

use podling_proto::agent::v1::{Entry, FileKind, ListFilesRequest, StatRequest};
use tonic::Response;

use super::{
    endpoint::to_wire,
    skipped::{CopyFailure, RemoteRole, SkipReason},
};
use crate::{backoff::retry_call, client::WorkspaceClient, failure::CommandFailure};

/// Files and directories of one copy. A source with more is refused, because the plan is held in
/// memory, and because links that are followed can multiply the files of a small directory.
pub const MAX_ENTRIES: usize = 1_000_000;

/// Reads the tree that a copy is planned from.
pub(super) trait FileLister {
    /// Returns the attributes of a path, or of its target if `follow` is set and it is a symbolic
    /// link.
    async fn stat(&self, path: &Path, follow: bool) -> Result<Entry, CopyFailure>;

    /// Returns the names in a directory, with their attributes if the listing has them.
    async fn list(&self, directory: &Path) -> Result<Vec<(OsString, Option<Entry>)>, CopyFailure>;
}

/// The files of this machine.
#[derive(Debug)]
pub struct LocalTree;

impl FileLister for LocalTree {
    async fn stat(&self, path: &Path, follow: bool) -> Result<Entry, CopyFailure> {
        let metadata = if follow { fs::metadata(path) } else { fs::symlink_metadata(path) };
        let metadata = metadata.map_err(|error| {
            let failure = CopyFailure::read(path, error);
            if follow && path.is_symlink() { failure.because(SkipReason::BrokenSymlink) } else { failure }
        })?;
        Ok(Entry {
            kind: kind(metadata.file_type()).into(),
            size: metadata.len(),
            mode: metadata.mode() & 0o7777,
            device: metadata.dev(),
            inode: metadata.ino(),
            ..Entry::default()
        })
    }

    async fn list(&self, directory: &Path) -> Result<Vec<(OsString, Option<Entry>)>, CopyFailure> {
        let names = fs::read_dir(directory)
            .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect::<Result<Vec<_>, _>>());
        let mut names =
            names.map_err(|error| CopyFailure::read(directory, error).because(SkipReason::Unreadable))?;
        names.sort();
        Ok(names.into_iter().map(|name| (name, None)).collect())
    }
}

fn kind(of: FileType) -> FileKind {
    match of {
        of if of.is_dir() => FileKind::Directory,
        of if of.is_file() => FileKind::File,
        of if of.is_symlink() => FileKind::Symlink,
        _ => FileKind::Other,
    }
}

/// The files of a workspace.
#[derive(Debug)]
pub struct RemoteTree<'a>(pub &'a WorkspaceClient);

impl FileLister for RemoteTree<'_> {
    async fn stat(&self, path: &Path, follow: bool) -> Result<Entry, CopyFailure> {
        let request = StatRequest { path: Some(to_wire(path)), no_follow: !follow };
        let answer = retry_call(async || self.0.files().stat(request.clone()).await).await;
        // The path was listed, so only the target of a link can be missing.
        let answer = answer.map_err(|status| {
            CopyFailure::remote(status, RemoteRole::Source).because(SkipReason::BrokenSymlink)
        })?;
        Ok(answer.entry.unwrap_or_default())
    }

    async fn list(&self, directory: &Path) -> Result<Vec<(OsString, Option<Entry>)>, CopyFailure> {
        let request = ListFilesRequest { path: Some(to_wire(directory)) };
        // A listing cannot be resumed, so each retry reads all pages.
        let entries = retry_call(async || {
            let mut pages = self.0.files().list(request.clone()).await?.into_inner();
            let mut entries = Vec::new();
            while let Some(page) = pages.message().await? {
                entries.extend(page.entries);
                if entries.len() > MAX_ENTRIES {
                    break;
                }
            }
            Ok(Response::new(entries))
        });
        let entries = entries.await.map_err(|status| CopyFailure::remote(status, RemoteRole::Source))?;
        entries.into_iter().map(|entry| Ok((safe_name(&entry)?, Some(entry)))).collect()
    }
}

/// Returns the name of a remote entry. Fails for a name that would lead to another local directory.
fn safe_name(entry: &Entry) -> Result<OsString, CommandFailure> {
    let name = if entry.raw_name.is_empty() {
        OsString::from(&entry.name)
    } else {
        OsString::from_vec(entry.raw_name.clone())
    };
    let is_plain =
        Path::new(&name).file_name() == Some(OsStr::new(&name)) && !name.as_encoded_bytes().contains(&0);
    if is_plain {
        return Ok(name);
    }
    Err(CommandFailure::Other(format!(
        "cannot copy {name:?}: the agent reports it as a file name, but it is a path; nothing was copied"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remote_name_outside_its_directory_is_rejected() {
        let named = |name: &str| Entry { name: name.to_owned(), ..Entry::default() };
        assert!(safe_name(&named("a file")).is_ok());
        for name in ["", ".", "..", "../x", "a/b", "/etc/passwd", "x/", "a\0b"] {
            assert!(safe_name(&named(name)).is_err(), "{name:?}");
        }
    }
}
