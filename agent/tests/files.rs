//! File operations of clients. Most tests run with both path resolvers: openat2 and the component
//! walk.

#[path = "files/http.rs"]
mod http;
/// Shared with the end-to-end tests, so that skipped tests appear in the same summary.
#[path = "../../tests/src/skipped.rs"]
#[allow(unreachable_pub, reason = "public items of the tests' library")]
mod skipped;
#[path = "files/swap.rs"]
mod swap;
#[path = "files/tree.rs"]
mod tree;
#[path = "files/wire.rs"]
mod wire;
#[path = "files/write.rs"]
mod write;

use std::{path::Path, sync::Arc, time::Duration};

use futures_util::TryStreamExt;
use podling_agent::{
    admission::AdmissionGate,
    files::{FileEntry, FileError, Files, PathResolver, RelPath, WorkspaceRoot, WriteOptions, WrittenFile},
};

/// A workspace, with a directory beside it that must stay out of reach.
struct FilesFixture {
    dir: tempfile::TempDir,
    files: Files,
}

impl FilesFixture {
    fn new(resolver: PathResolver) -> Self {
        Self::within(resolver, tempfile::tempdir().unwrap())
    }

    /// Creates the workspace in memory where possible, for tests that a disk would only slow down.
    fn in_memory(resolver: PathResolver) -> Self {
        let place = Path::new("/dev/shm");
        let dir = if place.is_dir() { tempfile::tempdir_in(place) } else { tempfile::tempdir() };
        Self::within(resolver, dir.unwrap())
    }

    fn within(resolver: PathResolver, dir: tempfile::TempDir) -> Self {
        std::fs::create_dir(dir.path().join("home")).unwrap();
        std::fs::create_dir(dir.path().join("outside")).unwrap();
        std::fs::write(dir.path().join("outside/secret"), "secret").unwrap();
        let root = WorkspaceRoot::open_with(&dir.path().join("home"), resolver).unwrap();
        Self { files: Files::new(root, Arc::new(AdmissionGate::new())), dir }
    }

    /// Returns one fixture for each resolver.
    fn both() -> [Self; 2] {
        [Self::new(PathResolver::Kernel), Self::new(PathResolver::Walk)]
    }

    fn home(&self) -> std::path::PathBuf {
        self.dir.path().join("home")
    }

    /// Writes a file directly, without the agent.
    fn put(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.home().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    fn link(&self, target: impl AsRef<Path>, name: &str) {
        std::os::unix::fs::symlink(target, self.home().join(name)).unwrap();
    }

    fn content(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.home().join(name)).unwrap()
    }

    async fn read(&self, path: &str) -> Result<Vec<u8>, FileError> {
        let pieces = self.files.read(p(path)).await?.pieces();
        pieces.try_fold(Vec::new(), |all, piece| async move { Ok([all, piece.to_vec()].concat()) }).await
    }

    async fn list(&self, path: &str) -> Result<Vec<FileEntry>, FileError> {
        self.files.list(p(path)).await?.try_concat().await
    }

    async fn write(
        &self,
        path: &str,
        content: &[u8],
        options: WriteOptions,
    ) -> Result<WrittenFile, FileError> {
        let mut feed = self.files.write(p(path), options).await?;
        for piece in content.chunks(300_000) {
            feed.push(piece.to_vec().into()).await?;
        }
        feed.finish().await
    }

    /// Returns the sorted names in a directory, read from the file system instead of through
    /// `Files`.
    fn names(&self, directory: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.home().join(directory)).unwrap();
        let mut names: Vec<_> =
            entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Waits until a directory has exactly these names. Panics after 15 s.
    async fn settles(&self, directory: &str, names: &[&str]) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(15);
        while self.names(directory) != names {
            assert!(tokio::time::Instant::now() < deadline, "{:?}", self.names(directory));
            tokio::task::yield_now().await;
        }
    }
}

fn p(path: &str) -> RelPath {
    RelPath::parse(path).unwrap()
}
