//! File operations of clients. Most tests run with both path resolvers: openat2 and the component
//! walk.

#[path = "files/http.rs"]
mod http;
#[path = "files/swap.rs"]
mod swap;
#[path = "files/tree.rs"]
mod tree;
#[path = "files/wire.rs"]
mod wire;
#[path = "files/write.rs"]
mod write;

use std::{ops::Deref, sync::Arc};

use futures_util::TryStreamExt;
use podling_agent::{
    admission::AdmissionGate,
    files::{FileEntry, FileError, Files, PathResolver, RelPath, WorkspaceRoot, WriteOptions, WrittenFile},
};
use podling_testkit::{tree::HomeDir, wait_until};

/// A workspace, with a directory beside it that must stay out of reach.
struct FilesFixture {
    home: HomeDir,
    files: Files,
}

impl Deref for FilesFixture {
    type Target = HomeDir;

    fn deref(&self) -> &HomeDir {
        &self.home
    }
}

impl FilesFixture {
    fn new(resolver: PathResolver) -> Self {
        Self::within(resolver, HomeDir::on_disk())
    }

    fn in_memory(resolver: PathResolver) -> Self {
        Self::within(resolver, HomeDir::in_memory())
    }

    fn within(resolver: PathResolver, home: HomeDir) -> Self {
        let root = WorkspaceRoot::open_with(&home.home(), resolver).unwrap();
        Self { files: Files::new(root, Arc::new(AdmissionGate::new())), home }
    }

    /// Returns one fixture for each resolver.
    fn both() -> [Self; 2] {
        [Self::new(PathResolver::Kernel), Self::new(PathResolver::Walk)]
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

    /// Waits until a directory has exactly these names.
    async fn settles(&self, directory: &str, names: &[&str]) {
        wait_until(&format!("{directory:?} has {names:?}"), || self.names(directory) == names).await;
    }
}

fn p(path: &str) -> RelPath {
    RelPath::parse(path).unwrap()
}
