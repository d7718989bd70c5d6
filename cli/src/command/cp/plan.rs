//! Plans a copy. Walks the source, and lists the directories to create, the files to copy, and the
//! paths to leave out. Independent of where the source is.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    rc::Rc,
};

use podling_proto::agent::v1::{Entry, FileKind};
use tokio::task::yield_now;

use super::{
    endpoint::show,
    skipped::{CopyFailure, SkipReason, SkippedPath},
    tree::{FileLister, MAX_ENTRIES},
};
use crate::failure::CommandFailure;

/// Deepest nesting of directories that is copied. A deeper directory is left out.
pub const MAX_DEPTH: usize = 1_000;

/// Directories and files to copy. Paths in a workspace are relative to its root.
#[derive(Debug, Default)]
pub struct CopyPlan {
    /// Directories to create, parents first. Without the first, nothing can be copied.
    pub directories: Vec<CopyDirectory>,
    pub files: Vec<CopyFile>,
    /// Paths that are left out.
    pub skipped: Vec<SkippedPath>,
    /// True if the source is a file.
    pub is_single_file: bool,
}

/// One directory to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyDirectory {
    pub from: PathBuf,
    pub to: PathBuf,
    /// Permission bits at the source. `None` for a directory that has no source.
    pub mode: Option<u32>,
}

/// One file to copy.
#[derive(Debug)]
pub struct CopyFile {
    pub from: PathBuf,
    pub to: PathBuf,
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

impl CopyPlan {
    /// Returns the size of all files in bytes.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

/// Plans a copy of `from` to the new path `to`. Follows `from` if it is a symbolic link. Fails if
/// `from` itself cannot be read or has too many entries, or if the whole source is unreachable.
pub(super) async fn plan_copy(
    lister: &impl FileLister,
    from: &Path,
    to: &Path,
    symlinks: SymlinkPolicy,
) -> Result<CopyPlan, CommandFailure> {
    plan_within(lister, from, to, symlinks, MAX_ENTRIES).await
}

async fn plan_within(
    lister: &impl FileLister,
    from: &Path,
    to: &Path,
    symlinks: SymlinkPolicy,
    max_entries: usize,
) -> Result<CopyPlan, CommandFailure> {
    let root = QueuedPath { from: from.into(), to: to.into(), entry: None, chain: DirectoryChain::default() };
    let mut planner = CopyPlanner { lister, symlinks, plan: CopyPlan::default(), queue: [root].into() };
    while let Some(queued) = planner.queue.pop_front() {
        let (path, is_root) = (queued.from.clone(), queued.chain.depth() == 0);
        match planner.visit(queued).await {
            Ok(()) => {}
            Err(CopyFailure { failure, .. }) if is_root => return Err(failure),
            Err(failure) => planner.plan.skipped.push(failure.into_skipped(path)?),
        }
        if planner.entries() > max_entries {
            return Err(CommandFailure::Other(format!(
                "cannot copy {}: it has more than {max_entries} files and directories, perhaps because \
                 symbolic links lead to the same files many times; copy its parts one by one, or without -L",
                show(from)
            )));
        }
    }
    Ok(planner.plan)
}

/// A path of the source that is not planned yet.
struct QueuedPath {
    from: PathBuf,
    to: PathBuf,
    /// Attributes from the listing of the directory, if that has them.
    entry: Option<Entry>,
    chain: DirectoryChain,
}

struct CopyPlanner<'a, L> {
    lister: &'a L,
    symlinks: SymlinkPolicy,
    plan: CopyPlan,
    queue: VecDeque<QueuedPath>,
}

impl<L: FileLister> CopyPlanner<'_, L> {
    /// Returns the number of paths that are planned, left out or still to be visited.
    fn entries(&self) -> usize {
        let CopyPlan { directories, files, skipped, .. } = &self.plan;
        directories.len() + files.len() + skipped.len() + self.queue.len()
    }

    /// Adds a path to the plan, and the paths in it to the queue. Returns why the path is left out.
    async fn visit(&mut self, queued: QueuedPath) -> Result<(), CopyFailure> {
        let QueuedPath { from, to, entry, chain } = queued;
        let is_root = chain.depth() == 0;
        let follows = is_root || self.symlinks == SymlinkPolicy::Follow;
        let entry = match entry {
            Some(entry) if !follows || entry.kind() != FileKind::Symlink => entry,
            _ => self.lister.stat(&from, follows).await?,
        };
        match entry.kind() {
            FileKind::Directory => {
                // The walk of a large tree must not delay a signal.
                yield_now().await;
                let inside = chain.enter(DirectoryIdentity { device: entry.device, inode: entry.inode })?;
                let listed = self.lister.list(&from).await?;
                self.queue.extend(listed.into_iter().map(|(name, entry)| QueuedPath {
                    from: from.join(&name),
                    to: to.join(&name),
                    entry,
                    chain: inside.clone(),
                }));
                self.plan.directories.push(CopyDirectory { from, to, mode: Some(entry.mode) });
            }
            FileKind::File => {
                self.plan.is_single_file |= is_root;
                self.plan.files.push(CopyFile { from, to, size: entry.size, mode: entry.mode });
            }
            FileKind::Symlink if self.symlinks == SymlinkPolicy::Ignore => {}
            FileKind::Symlink => return Err(SkipReason::Symlink.into()),
            FileKind::Other | FileKind::Unspecified if is_root => {
                let message = format!("cannot copy {}: it is a pipe, a socket or a device", show(&from));
                return Err(CommandFailure::Other(message).into());
            }
            FileKind::Other | FileKind::Unspecified => return Err(SkipReason::SpecialFile.into()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;
    use crate::command::cp::tree::LocalTree;

    /// Plans an upload of a directory to `dst`.
    async fn planned(from: &Path, symlinks: SymlinkPolicy) -> CopyPlan {
        plan_copy(&LocalTree, from, Path::new("dst"), symlinks).await.expect("a plan")
    }

    fn skipped(plan: &CopyPlan, directory: &Path) -> Vec<(String, SkipReason)> {
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

        let plan = planned(directory.path(), SymlinkPolicy::Skip).await;
        let to: Vec<_> = plan.files.iter().map(|file| show(&file.to)).collect();
        assert_eq!(to, ["dst/sub/a"]);
        let directories: Vec<_> = plan.directories.iter().map(|directory| show(&directory.to)).collect();
        assert_eq!(directories, ["dst", "dst/sub"]);
        assert_eq!((plan.bytes(), plan.skipped.len()), (5, 2));
        let plan = planned(directory.path(), SymlinkPolicy::Ignore).await;
        assert_eq!((plan.files.len(), plan.skipped.len()), (1, 0));

        let plan = planned(directory.path(), SymlinkPolicy::Follow).await;
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
        let plan = planned(directory.path(), SymlinkPolicy::Follow).await;
        let cycles: Vec<_> = skipped(&plan, directory.path());
        let expected = ["a", "b", "again/up", "sub/up", "again/inner/root", "sub/inner/root"];
        assert_eq!(cycles, expected.map(|path| (path.to_owned(), SkipReason::Cycle)));
        let files: Vec<_> = plan.files.iter().map(|file| show(&file.to)).collect();
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
        let refused = plan_within(&LocalTree, &from, Path::new("dst"), SymlinkPolicy::Follow, 5_000).await;
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
        let plan = planned(directory.path(), SymlinkPolicy::Skip).await;
        assert_eq!(plan.directories[1].mode, Some(0o700));
        assert_eq!(skipped(&plan, directory.path()), [("socket".to_owned(), SkipReason::SpecialFile)]);
    }
}
