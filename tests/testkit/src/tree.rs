//! Directories of tests: temporary ones with a workspace's files, and snapshots of trees, to compare
//! them with a later state or with a zip.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File},
    io::Read,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, lchown, symlink},
    },
    path::{Path, PathBuf},
};

use ring::digest::{Context, SHA256};

/// Entries below a directory, by their relative path in bytes.
pub type Tree = BTreeMap<Vec<u8>, TreeEntry>;

/// Metadata and digest of a file, directory or symbolic link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeEntry {
    /// Permissions and file type, as in `st_mode`.
    pub mode: u32,
    /// Modification time, in seconds and nanoseconds since 1970.
    pub modified: (i64, i64),
    /// SHA-256 in hex of a file's content or a link's target; empty for a directory.
    pub sha256: String,
}

/// A temporary directory `home` with a workspace's files, and a directory `outside` beside it that
/// must stay out of reach.
#[derive(Debug)]
pub struct HomeDir {
    /// The parent of both directories, which is removed on drop.
    pub dir: tempfile::TempDir,
}

impl HomeDir {
    /// Creates the directories on disk.
    pub fn on_disk() -> Self {
        Self::within(tempfile::tempdir().expect("a directory"))
    }

    /// Creates the directories in memory where possible, for tests that a disk would only slow down.
    pub fn in_memory() -> Self {
        let place = Path::new("/dev/shm");
        let dir = if place.is_dir() { tempfile::tempdir_in(place) } else { tempfile::tempdir() };
        Self::within(dir.expect("a directory"))
    }

    fn within(dir: tempfile::TempDir) -> Self {
        for name in ["home", "outside"] {
            fs::create_dir(dir.path().join(name)).expect("a directory");
        }
        fs::write(dir.path().join("outside/secret"), "secret").expect("a file");
        Self { dir }
    }

    pub fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    /// Returns the path of an entry below `home`.
    pub fn path(&self, name: impl AsRef<[u8]>) -> PathBuf {
        self.home().join(OsStr::from_bytes(name.as_ref()))
    }

    /// Writes a file and creates the directories above it.
    pub fn put(&self, name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
        fs::write(path, content).expect("a file");
    }

    /// Creates a directory and those above it.
    pub fn directory(&self, name: &str) {
        fs::create_dir_all(self.path(name)).expect("directories");
    }

    /// Creates a symbolic link.
    pub fn link(&self, target: impl AsRef<Path>, name: &str) {
        symlink(target, self.path(name)).expect("a link");
    }

    /// Returns the content of a file.
    pub fn content(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).expect("a file")
    }

    /// Returns the sorted names in a directory below `home`.
    pub fn names(&self, directory: &str) -> Vec<String> {
        names(&self.path(directory))
    }
}

/// Returns the sorted names in a directory.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut names: Vec<_> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Returns random bytes that only the length determines.
pub fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(length as u64).fill(&mut bytes);
    bytes
}

/// Reads all entries below this directory.
pub fn tree(dir: &Path) -> Tree {
    let mut tree = Tree::new();
    add(&mut tree, dir, dir);
    tree
}

fn add(tree: &mut Tree, root: &Path, dir: &Path) {
    for entry in fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
        let path = entry.expect("an entry").path();
        let meta = fs::symlink_metadata(&path).expect("path exists");
        let mut sum = Context::new(&SHA256);
        let sha256 = if meta.is_dir() {
            add(tree, root, &path);
            String::new()
        } else {
            match meta.is_symlink() {
                true => sum.update(fs::read_link(&path).expect("a link").as_os_str().as_bytes()),
                false => read(&path, &mut sum),
            }
            hex(sum.finish().as_ref())
        };
        let modified = (meta.mtime(), meta.mtime_nsec());
        let below = path.strip_prefix(root).expect("path is below the root").as_os_str().as_bytes().to_vec();
        tree.insert(below, TreeEntry { mode: meta.mode(), modified, sha256 });
    }
}

fn read(path: &Path, sum: &mut Context) {
    let mut file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut buffer = vec![0; 1024 * 1024];
    while let read @ 1.. = file.read(&mut buffer).expect("read file") {
        sum.update(&buffer[..read]);
    }
}

/// Returns the lower-case hex digits of bytes.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Asserts that two trees are equal; the message lists the differences.
#[track_caller]
pub fn assert_same_tree(what: &str, actual: &Tree, expected: &Tree) {
    let paths: std::collections::BTreeSet<_> = actual.keys().chain(expected.keys()).collect();
    let differing: Vec<_> = paths
        .into_iter()
        .filter(|path| actual.get(*path) != expected.get(*path))
        .map(|path| {
            let name = String::from_utf8_lossy(path);
            format!("{name}: {:?} instead of {:?}", actual.get(path), expected.get(path))
        })
        .collect();
    assert!(differing.is_empty(), "{what}: {differing:#?}");
}

/// Changes the owner of all entries below a directory to the owner of the directory. In a volume of
/// a pod, that owner is not the user of this process.
pub fn chown_to_dir_owner(dir: &Path) {
    let owner = fs::metadata(dir).expect("the directory");
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(next).expect("a directory") {
            let path = entry.expect("an entry").path();
            lchown(&path, Some(owner.uid()), Some(owner.gid())).expect("chown");
            if path.is_dir() && !path.is_symlink() {
                dirs.push(path);
            }
        }
    }
}
