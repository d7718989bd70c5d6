//! What is in a folder, so that it can be compared with what is there later, or in a zip.

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

/// All below a folder by its path, as bytes.
pub type Tree = BTreeMap<Vec<u8>, TreeEntry>;

/// A file, folder or symbolic link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeEntry {
    /// With its kind.
    pub mode: u32,
    /// Seconds and nanoseconds since 1970.
    pub modified: (i64, i64),
    /// SHA-256, in hex, of a file's bytes or of where a link points; empty for a folder.
    pub sha256: String,
}

/// All that is below this folder.
pub fn tree(folder: &Path) -> Tree {
    let mut tree = Tree::new();
    add(&mut tree, folder, folder);
    tree
}

fn add(tree: &mut Tree, root: &Path, folder: &Path) {
    for entry in fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
        let path = entry.expect("an entry").path();
        let meta = fs::symlink_metadata(&path).expect("it is there");
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
        let below = path.strip_prefix(root).expect("it is below").as_os_str().as_bytes().to_vec();
        tree.insert(below, TreeEntry { mode: meta.mode(), modified, sha256 });
    }
}

fn read(path: &Path, sum: &mut Context) {
    let mut file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut buffer = vec![0; 1024 * 1024];
    while let read @ 1.. = file.read(&mut buffer).expect("it can be read") {
        sum.update(&buffer[..read]);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Asserts that two trees are the same; says what differs.
#[track_caller]
pub fn assert_same_tree(what: &str, seen: &Tree, expected: &Tree) {
    let paths: std::collections::BTreeSet<_> = seen.keys().chain(expected.keys()).collect();
    let differing: Vec<_> = paths
        .into_iter()
        .filter(|path| seen.get(*path) != expected.get(*path))
        .map(|path| {
            let name = String::from_utf8_lossy(path);
            format!("{name}: {:?} instead of {:?}", seen.get(path), expected.get(path))
        })
        .collect();
    assert!(differing.is_empty(), "{what}: {differing:#?}");
}

/// Gives all there is in a folder to whom the folder belongs, as if its owner had made it: in a pod that is not us.
pub fn chown_to_dir_owner(folder: &Path) {
    let owner = fs::metadata(folder).expect("the folder");
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).expect("a folder") {
            let path = entry.expect("an entry").path();
            lchown(&path, Some(owner.uid()), Some(owner.gid())).expect("its owner");
            if path.is_dir() && !path.is_symlink() {
                folders.push(path);
            }
        }
    }
}
