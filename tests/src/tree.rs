//! Takes snapshots of directory trees, to compare them with a later state or with a zip.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, lchown},
    },
    path::Path,
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

fn hex(bytes: &[u8]) -> String {
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
