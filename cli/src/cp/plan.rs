//! Plans a copy. Walks the source, and lists the directories to create, the files to copy, and the
//! paths to skip.

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    fs::{self, Metadata},
    os::unix::{ffi::OsStringExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use podling_proto::agent::v1::{Entry, FileKind, ListFilesRequest, StatRequest};
use tonic::Response;

use super::endpoint::RemotePath;
use crate::{backoff::retry_call, client::WorkspaceClient, failure::CommandFailure};

/// Deepest nesting of directories that is walked. Without a bound, a cycle of followed links would
/// never end.
const MAX_DEPTH: usize = 128;

/// Directories and files to copy. `F` is the type of a path at the source, `T` at the destination.
#[derive(Debug)]
pub struct CopyPlan<F, T> {
    /// Directories to create, parents first.
    pub directories: Vec<T>,
    pub files: Vec<CopyFile<F, T>>,
    /// Skipped paths, with the reason.
    pub skipped: Vec<(String, &'static str)>,
}

/// One file to copy.
#[derive(Debug)]
pub struct CopyFile<F, T> {
    pub from: F,
    pub to: T,
    /// Size in bytes when the plan was made.
    pub size: u64,
    pub mode: u32,
    pub modified: Option<SystemTime>,
}

/// Treatment of symbolic links inside directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SymlinkPolicy {
    /// Links are skipped and listed, because their target may be something else at the destination.
    Skip,
    /// The targets of links are copied.
    Follow,
}

const SKIPPED_LINK: &str = "symbolic link (use -L to copy its target)";
const SKIPPED_OTHER: &str = "neither a file nor a directory";
const SKIPPED_DEEP: &str = "nested too deeply; a symbolic link may form a cycle";

impl<F, T> CopyPlan<F, T> {
    fn empty() -> Self {
        Self { directories: Vec::new(), files: Vec::new(), skipped: Vec::new() }
    }

    /// Returns the size of all files in bytes.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

/// Plans a copy of a local path to a workspace. Follows `from` if it is a symbolic link.
pub fn plan_upload(
    from: &Path,
    to: RemotePath,
    symlinks: SymlinkPolicy,
) -> Result<CopyPlan<PathBuf, RemotePath>, CommandFailure> {
    let mut plan = CopyPlan::empty();
    let mut queue = VecDeque::from([(from.to_owned(), to, 0)]);
    while let Some((from, to, depth)) = queue.pop_front() {
        let read_error = || CommandFailure::io(format!("cannot read {}", from.display()));
        let follow = depth == 0 || symlinks == SymlinkPolicy::Follow;
        let metadata = if follow { fs::metadata(&from) } else { fs::symlink_metadata(&from) };
        let metadata = match metadata {
            // The link is dangling, or its target cannot be accessed.
            Err(_) if depth > 0 && from.is_symlink() => {
                plan.skipped.push((from.display().to_string(), SKIPPED_LINK));
                continue;
            }
            metadata => metadata.map_err(read_error())?,
        };
        if let Some(why) = skip_reason(&metadata, depth) {
            plan.skipped.push((from.display().to_string(), why));
        } else if metadata.is_dir() {
            let mut names = Vec::new();
            for entry in fs::read_dir(&from).map_err(read_error())? {
                names.push(entry.map_err(read_error())?.file_name());
            }
            names.sort();
            queue.extend(names.into_iter().map(|name| (from.join(&name), to.join(&name), depth + 1)));
            plan.directories.push(to);
        } else {
            let (size, mode, modified) = (metadata.len(), metadata.mode(), metadata.modified().ok());
            plan.files.push(CopyFile { from, to, size, mode, modified });
        }
    }
    Ok(plan)
}

fn skip_reason(metadata: &Metadata, depth: usize) -> Option<&'static str> {
    match metadata.file_type() {
        kind if kind.is_symlink() => Some(SKIPPED_LINK),
        kind if kind.is_dir() && depth > MAX_DEPTH => Some(SKIPPED_DEEP),
        kind if kind.is_dir() || kind.is_file() => None,
        _ => Some(SKIPPED_OTHER),
    }
}

/// Plans a copy of a workspace path to this machine. Follows `from` if it is a symbolic link.
pub async fn plan_download(
    workspace_client: &WorkspaceClient,
    from: RemotePath,
    to: PathBuf,
    symlinks: SymlinkPolicy,
) -> Result<CopyPlan<RemotePath, PathBuf>, CommandFailure> {
    let mut plan = CopyPlan::empty();
    let entry = stat(workspace_client, &from).await?;
    let mut queue = VecDeque::from([(from, to, entry, 0)]);
    while let Some((from, to, mut entry, depth)) = queue.pop_front() {
        if entry.kind() == FileKind::Symlink && symlinks == SymlinkPolicy::Follow {
            match stat(workspace_client, &from).await {
                Ok(target) => entry = target,
                Err(failure) if failure.exit_code() == crate::failure::UNAVAILABLE => return Err(failure),
                // The target is missing or outside the workspace, so the link is skipped below.
                Err(_) => {}
            }
        }
        match entry.kind() {
            FileKind::Directory if depth > MAX_DEPTH => plan.skipped.push((from.show(), SKIPPED_DEEP)),
            FileKind::Directory => {
                for entry in list(workspace_client, &from).await? {
                    let name = safe_name(&entry)?;
                    queue.push_back((from.join(&name), to.join(&name), entry, depth + 1));
                }
                plan.directories.push(to);
            }
            FileKind::File => {
                let modified = entry.modified.and_then(|at| SystemTime::try_from(at).ok());
                plan.files.push(CopyFile { from, to, size: entry.size, mode: entry.mode, modified });
            }
            FileKind::Symlink => plan.skipped.push((from.show(), SKIPPED_LINK)),
            FileKind::Other | FileKind::Unspecified => plan.skipped.push((from.show(), SKIPPED_OTHER)),
        }
    }
    Ok(plan)
}

/// Returns the metadata of a path. Follows symbolic links.
pub async fn stat(workspace_client: &WorkspaceClient, path: &RemotePath) -> Result<Entry, CommandFailure> {
    let request = StatRequest { path: Some(path.wire()), no_follow: false };
    let answer = retry_call(|| {
        let (mut files, request) = (workspace_client.files(), request.clone());
        async move { files.stat(request).await }
    });
    Ok(answer.await?.entry.unwrap_or_default())
}

async fn list(workspace_client: &WorkspaceClient, path: &RemotePath) -> Result<Vec<Entry>, CommandFailure> {
    let request = ListFilesRequest { path: Some(path.wire()) };
    // A listing cannot be resumed, so each retry reads all pages.
    let entries = retry_call(|| {
        let (mut files, request) = (workspace_client.files(), request.clone());
        async move {
            let mut pages = files.list(request).await?.into_inner();
            let mut entries = Vec::new();
            while let Some(page) = pages.message().await? {
                entries.extend(page.entries);
            }
            Ok(Response::new(entries))
        }
    });
    Ok(entries.await?)
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
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::cp::endpoint::CopyEndpoint;

    fn root() -> RemotePath {
        match CopyEndpoint::parse(OsStr::new("demo:dst")) {
            Ok(CopyEndpoint::Remote { path, .. }) => path,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn directory_plan_skips_symlinks_unless_followed() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("sub")).expect("sub");
        fs::write(directory.path().join("sub/a"), "12345").expect("a");
        symlink("sub/a", directory.path().join("link")).expect("link");
        symlink("nowhere", directory.path().join("broken")).expect("broken");

        let plan = plan_upload(directory.path(), root(), SymlinkPolicy::Skip).expect("a plan");
        let to: Vec<_> = plan.files.iter().map(|file| file.to.show()).collect();
        assert_eq!(to, ["dst/sub/a"]);
        assert_eq!(plan.directories.iter().map(RemotePath::show).collect::<Vec<_>>(), ["dst", "dst/sub"]);
        assert_eq!((plan.bytes(), plan.skipped.len()), (5, 2));

        let plan = plan_upload(directory.path(), root(), SymlinkPolicy::Follow).expect("a plan");
        assert_eq!((plan.files.len(), plan.skipped.len()), (2, 1), "the dangling symlink is skipped");
    }

    #[test]
    fn symlink_cycle_ends_the_walk() {
        let directory = tempfile::tempdir().expect("a directory");
        symlink(".", directory.path().join("again")).expect("link");
        // Either the kernel's limit or `MAX_DEPTH` ends the walk.
        let plan = plan_upload(directory.path(), root(), SymlinkPolicy::Follow).expect("a plan");
        assert!(!plan.skipped.is_empty());
    }

    #[test]
    fn remote_name_outside_its_directory_is_rejected() {
        let named = |name: &str| Entry { name: name.to_owned(), ..Entry::default() };
        assert!(safe_name(&named("a file")).is_ok());
        for name in ["", ".", "..", "../x", "a/b", "/etc/passwd", "x/", "a\0b"] {
            assert!(safe_name(&named(name)).is_err(), "{name:?}");
        }
    }
}
