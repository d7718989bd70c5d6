//! Plans a copy. Walks the source, and lists the directories to create, the files to copy, and the
//! paths to leave out.

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    fs::{self, Metadata},
    os::unix::{ffi::OsStringExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
    rc::Rc,
};

use podling_proto::agent::v1::{Entry, FileKind, ListFilesRequest, StatRequest};
use tokio::task::yield_now;
use tonic::{Response, Status};

use super::{
    endpoint::RemotePath,
    skipped::{CopyFailure, RemoteRole, SkipReason, SkippedPath},
};
use crate::{backoff::retry_call, client::WorkspaceClient, failure::CommandFailure};

/// Deepest nesting of directories that is copied. A deeper directory is left out.
pub const MAX_DEPTH: usize = 1_000;
/// Files and directories of one copy. A source with more is refused, because the plan is held in
/// memory, and because links that are followed can multiply the files of a small directory.
const MAX_ENTRIES: usize = 1_000_000;

/// Directories and files to copy. `F` is the type of a path at the source, `T` at the destination.
#[derive(Debug)]
pub struct CopyPlan<F, T> {
    /// Directories to create, parents first. Without the first, nothing can be copied.
    pub directories: Vec<CopyDirectory<T>>,
    pub files: Vec<CopyFile<F, T>>,
    /// Paths that are left out.
    pub skipped: Vec<SkippedPath>,
    /// True if the source is a file.
    pub is_single_file: bool,
}

/// One directory to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyDirectory<T> {
    /// Path at the source, for display.
    pub from: String,
    pub to: T,
    /// Permission bits at the source. `None` for a directory that has no source.
    pub mode: Option<u32>,
}

/// One file to copy.
#[derive(Debug)]
pub struct CopyFile<F, T> {
    pub from: F,
    pub to: T,
    /// Size in bytes when the plan was made.
    pub size: u64,
    /// Permission bits when the plan was made.
    pub mode: u32,
}

/// Treatment of symbolic links inside directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SymlinkPolicy {
    /// Links are left out and listed, because their target may be something else at the destination.
    Skip,
    /// Links are left out without being listed.
    Ignore,
    /// The targets of links are copied.
    Follow,
}

/// Identity of a directory: device and inode number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct DirectoryIdentity {
    device: u64,
    inode: u64,
}

/// The directories that contain a path, innermost first.
#[derive(Debug, Clone, Default)]
struct DirectoryChain(Option<Rc<DirectoryChainLink>>);

#[derive(Debug)]
struct DirectoryChainLink {
    identity: DirectoryIdentity,
    depth: usize,
    outer: DirectoryChain,
}

impl DirectoryChain {
    /// Returns the number of directories.
    fn depth(&self) -> usize {
        self.0.as_ref().map_or(0, |link| link.depth)
    }

    /// Returns the chain of the paths in a directory. Fails if the directory contains itself or is
    /// nested too deeply.
    fn enter(&self, identity: DirectoryIdentity) -> Result<Self, SkipReason> {
        if self.depth() > MAX_DEPTH {
            return Err(SkipReason::TooDeep);
        }
        // An agent that does not report inodes sends zeros.
        let is_known = identity.inode != 0;
        if is_known && self.identities().any(|outer| outer == identity) {
            return Err(SkipReason::Cycle);
        }
        let link = DirectoryChainLink { identity, depth: self.depth() + 1, outer: self.clone() };
        Ok(Self(Some(Rc::new(link))))
    }

    fn identities(&self) -> impl Iterator<Item = DirectoryIdentity> {
        std::iter::successors(self.0.as_ref(), |link| link.outer.0.as_ref()).map(|link| link.identity)
    }
}

impl<F, T> CopyPlan<F, T> {
    fn empty() -> Self {
        Self { directories: Vec::new(), files: Vec::new(), skipped: Vec::new(), is_single_file: false }
    }

    /// Returns the size of all files in bytes.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// Fails if the plan has too many entries. `queued` is the number of paths still to be visited.
    fn check_bound(&self, from: &str, queued: usize, max_entries: usize) -> Result<(), CommandFailure> {
        let entries = self.directories.len() + self.files.len() + self.skipped.len() + queued;
        if entries <= max_entries {
            return Ok(());
        }
        Err(CommandFailure::Other(format!(
            "cannot copy {from}: it has more than {max_entries} files and directories, perhaps because \
             symbolic links lead to the same files many times; copy its parts one by one, or without -L"
        )))
    }
}

/// Plans a copy of a local path to a workspace. Follows `from` if it is a symbolic link. Fails only
/// if `from` itself cannot be read, or has too many entries.
pub async fn plan_upload(
    from: &Path,
    to: RemotePath,
    symlinks: SymlinkPolicy,
) -> Result<CopyPlan<PathBuf, RemotePath>, CommandFailure> {
    plan_upload_within(from, to, symlinks, MAX_ENTRIES).await
}

async fn plan_upload_within(
    from: &Path,
    to: RemotePath,
    symlinks: SymlinkPolicy,
    max_entries: usize,
) -> Result<CopyPlan<PathBuf, RemotePath>, CommandFailure> {
    let mut plan = CopyPlan::empty();
    let root = from.display().to_string();
    let mut queue = VecDeque::from([(from.to_owned(), to, DirectoryChain::default())]);
    while let Some((from, to, chain)) = queue.pop_front() {
        let shown = from.display().to_string();
        let is_root = chain.depth() == 0;
        let metadata = match local_metadata(&from, is_root, symlinks) {
            Ok(metadata) => metadata,
            Err(error) if !is_root => {
                plan.skipped.push(error.into_skipped(shown)?);
                continue;
            }
            Err(CopyFailure { failure, .. }) => return Err(failure),
        };
        if metadata.is_dir() {
            // The walk of a large tree must not delay a signal.
            yield_now().await;
            let identity = DirectoryIdentity { device: metadata.dev(), inode: metadata.ino() };
            let inside = match chain.enter(identity) {
                Ok(inside) => inside,
                Err(reason) => {
                    plan.skipped.push(SkippedPath::new(shown, reason));
                    continue;
                }
            };
            let names = match local_names(&from) {
                Ok(names) => names,
                Err(CopyFailure { failure, .. }) if is_root => return Err(failure),
                Err(error) => {
                    plan.skipped.push(error.because(SkipReason::Unreadable).into_skipped(shown)?);
                    continue;
                }
            };
            queue.extend(names.into_iter().map(|name| (from.join(&name), to.join(&name), inside.clone())));
            plan.directories.push(CopyDirectory { from: shown, to, mode: Some(metadata.mode() & 0o7777) });
            plan.check_bound(&root, queue.len(), max_entries)?;
        } else if metadata.is_file() {
            plan.is_single_file |= is_root;
            plan.files.push(CopyFile { from, to, size: metadata.len(), mode: metadata.mode() });
        } else if !metadata.is_symlink() {
            plan.skipped.push(SkippedPath::new(shown, SkipReason::SpecialFile));
        } else if symlinks != SymlinkPolicy::Ignore {
            plan.skipped.push(SkippedPath::new(shown, SkipReason::Symlink));
        }
    }
    Ok(plan)
}

fn local_metadata(path: &Path, is_root: bool, symlinks: SymlinkPolicy) -> Result<Metadata, CopyFailure> {
    if !is_root && symlinks != SymlinkPolicy::Follow {
        return fs::symlink_metadata(path).map_err(|error| CopyFailure::read(path, error));
    }
    fs::metadata(path).map_err(|error| {
        let failure = CopyFailure::read(path, error);
        match path.is_symlink() && !is_root {
            true => failure.because(SkipReason::BrokenSymlink),
            false => failure,
        }
    })
}

/// Returns the names in a directory, sorted.
fn local_names(directory: &Path) -> Result<Vec<OsString>, CopyFailure> {
    let names = fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect::<Result<Vec<_>, _>>());
    let mut names = names.map_err(|error| CopyFailure::read(directory, error))?;
    names.sort();
    Ok(names)
}

/// Plans a copy of a workspace path to this machine. Follows `from` if it is a symbolic link. Fails
/// if `from` itself cannot be read or has too many entries, or if the workspace is unreachable.
pub async fn plan_download(
    workspace_client: &WorkspaceClient,
    from: RemotePath,
    to: PathBuf,
    symlinks: SymlinkPolicy,
) -> Result<CopyPlan<RemotePath, PathBuf>, CommandFailure> {
    let mut plan = CopyPlan::empty();
    let root = from.show();
    let entry = stat(workspace_client, &from).await?;
    let mut queue = VecDeque::from([(from, to, entry, DirectoryChain::default())]);
    while let Some((from, to, mut entry, chain)) = queue.pop_front() {
        let is_root = chain.depth() == 0;
        if entry.kind() == FileKind::Symlink && symlinks == SymlinkPolicy::Follow {
            match stat(workspace_client, &from).await {
                Ok(target) => entry = target,
                Err(status) => {
                    let error = CopyFailure::remote(status, RemoteRole::Source);
                    plan.skipped.push(error.because(SkipReason::BrokenSymlink).into_skipped(from.show())?);
                    continue;
                }
            }
        }
        match entry.kind() {
            FileKind::Directory => {
                let identity = DirectoryIdentity { device: entry.device, inode: entry.inode };
                let inside = match chain.enter(identity) {
                    Ok(inside) => inside,
                    Err(reason) => {
                        plan.skipped.push(SkippedPath::new(from.show(), reason));
                        continue;
                    }
                };
                let entries = match list(workspace_client, &from).await {
                    Ok(entries) => entries,
                    Err(status) if is_root => return Err(status.into()),
                    Err(status) => {
                        let error = CopyFailure::remote(status, RemoteRole::Source);
                        plan.skipped.push(error.into_skipped(from.show())?);
                        continue;
                    }
                };
                for entry in entries {
                    let name = safe_name(&entry)?;
                    queue.push_back((from.join(&name), to.join(&name), entry, inside.clone()));
                }
                plan.directories.push(CopyDirectory { from: from.show(), to, mode: Some(entry.mode) });
                plan.check_bound(&root, queue.len(), MAX_ENTRIES)?;
            }
            FileKind::File => {
                plan.is_single_file |= is_root;
                plan.files.push(CopyFile { from, to, size: entry.size, mode: entry.mode });
            }
            FileKind::Symlink if symlinks == SymlinkPolicy::Ignore => {}
            FileKind::Symlink => plan.skipped.push(SkippedPath::new(from.show(), SkipReason::Symlink)),
            FileKind::Other | FileKind::Unspecified if is_root => {
                let message = format!("cannot copy {root}: it is a pipe, a socket or a device");
                return Err(CommandFailure::Other(message));
            }
            FileKind::Other | FileKind::Unspecified => {
                plan.skipped.push(SkippedPath::new(from.show(), SkipReason::SpecialFile));
            }
        }
    }
    Ok(plan)
}

/// Returns the metadata of a path. Follows symbolic links.
pub async fn stat(workspace_client: &WorkspaceClient, path: &RemotePath) -> Result<Entry, Status> {
    let request = StatRequest { path: Some(path.wire()), no_follow: false };
    let answer = retry_call(async || workspace_client.files().stat(request.clone()).await);
    Ok(answer.await?.entry.unwrap_or_default())
}

async fn list(workspace_client: &WorkspaceClient, path: &RemotePath) -> Result<Vec<Entry>, Status> {
    let request = ListFilesRequest { path: Some(path.wire()) };
    // A listing cannot be resumed, so each retry reads all pages.
    let entries = retry_call(async || {
        let mut pages = workspace_client.files().list(request.clone()).await?.into_inner();
        let mut entries = Vec::new();
        while let Some(page) = pages.message().await? {
            entries.extend(page.entries);
            if entries.len() > MAX_ENTRIES {
                break;
            }
        }
        Ok(Response::new(entries))
    });
    entries.await
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
    use crate::command::cp::endpoint::CopyEndpoint;

    fn root() -> RemotePath {
        match CopyEndpoint::parse(OsStr::new("demo:dst")) {
            Ok(CopyEndpoint::Remote { path, .. }) => path,
            other => panic!("{other:?}"),
        }
    }

    fn skipped(plan: &CopyPlan<PathBuf, RemotePath>, directory: &Path) -> Vec<(String, SkipReason)> {
        let prefix = format!("{}/", directory.display());
        let relative = |path: &str| path.strip_prefix(&prefix).unwrap_or(path).to_owned();
        plan.skipped.iter().map(|skipped| (relative(&skipped.path), skipped.reason)).collect()
    }

    #[tokio::test]
    async fn directory_plan_skips_symlinks_unless_followed() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("sub")).expect("sub");
        fs::write(directory.path().join("sub/a"), "12345").expect("a");
        symlink("sub/a", directory.path().join("link")).expect("link");
        symlink("nowhere", directory.path().join("broken")).expect("broken");

        let plan = plan_upload(directory.path(), root(), SymlinkPolicy::Skip).await.expect("a plan");
        let to: Vec<_> = plan.files.iter().map(|file| file.to.show()).collect();
        assert_eq!(to, ["dst/sub/a"]);
        let directories: Vec<_> = plan.directories.iter().map(|directory| directory.to.show()).collect();
        assert_eq!(directories, ["dst", "dst/sub"]);
        assert_eq!((plan.bytes(), plan.skipped.len()), (5, 2));
        let plan = plan_upload(directory.path(), root(), SymlinkPolicy::Ignore).await.expect("a plan");
        assert_eq!((plan.files.len(), plan.skipped.len()), (1, 0));

        let plan = plan_upload(directory.path(), root(), SymlinkPolicy::Follow).await.expect("a plan");
        assert_eq!(plan.files.len(), 2);
        assert_eq!(
            skipped(&plan, directory.path()),
            [("broken".to_owned(), SkipReason::BrokenSymlink)],
            "the dangling symlink is left out"
        );
    }

    #[tokio::test]
    async fn followed_cycles_are_left_out_at_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        fs::create_dir_all(path("sub/inner")).expect("directories");
        fs::write(path("sub/inner/f"), "f").expect("a file");
        for (target, link) in
            [(".", "a"), (".", "b"), ("..", "sub/up"), ("../..", "sub/inner/root"), ("sub", "again")]
        {
            symlink(target, path(link)).expect("a link");
        }
        let plan = plan_upload(directory.path(), root(), SymlinkPolicy::Follow).await.expect("a plan");
        let cycles: Vec<_> = skipped(&plan, directory.path());
        let expected = ["a", "b", "again/up", "sub/up", "again/inner/root", "sub/inner/root"];
        assert_eq!(cycles, expected.map(|path| (path.to_owned(), SkipReason::Cycle)));
        let files: Vec<_> = plan.files.iter().map(|file| file.to.show()).collect();
        assert_eq!(files, ["dst/again/inner/f", "dst/sub/inner/f"], "a link that is no cycle is followed");
    }

    #[tokio::test]
    async fn links_that_multiply_files_exceed_the_bound() {
        // Thirty levels with two links each lead to 2^30 directories without any cycle.
        let directory = tempfile::tempdir().expect("a directory");
        for level in 0..30 {
            let here = directory.path().join(level.to_string());
            fs::create_dir(&here).expect("a directory");
            for link in ["a", "b"] {
                symlink(format!("../{}", level + 1), here.join(link)).expect("a link");
            }
        }
        fs::create_dir(directory.path().join("30")).expect("a directory");
        let from = directory.path().join("0");
        let refused = plan_upload_within(&from, root(), SymlinkPolicy::Follow, 5_000).await;
        let refused = refused.expect_err("too many").to_string();
        assert!(refused.contains("more than 5000 files"), "{refused}");
    }

    #[tokio::test]
    async fn special_files_and_modes_are_planned() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("private")).expect("a directory");
        fs::set_permissions(directory.path().join("private"), fs::Permissions::from_mode(0o700))
            .expect("mode");
        let socket = directory.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
        let plan = plan_upload(directory.path(), root(), SymlinkPolicy::Skip).await.expect("a plan");
        assert_eq!(plan.directories[1].mode, Some(0o700));
        assert_eq!(skipped(&plan, directory.path()), [("socket".to_owned(), SkipReason::SpecialFile)]);
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
