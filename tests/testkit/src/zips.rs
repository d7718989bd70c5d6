//! Reads zips with third-party programs: `unzip -t` and Python's zipfile.

use std::{collections::BTreeMap, path::Path, process::Command};

use crate::{machine::report_skipped, tree::Tree};

/// Python program that prints name, mode (with file type) and SHA-256 of each entry. It fails if a
/// checksum is wrong.
const LIST: &str = "
import hashlib, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as z:
    for i in z.infolist():
        sha = hashlib.sha256()
        with z.open(i) as f:
            while block := f.read(1 << 20):
                sha.update(block)
        name = i.filename.encode('utf-8' if i.flag_bits & 0x800 else 'cp437')
        print(name.hex(), i.external_attr >> 16, '' if i.is_dir() else sha.hexdigest(), sep=',')
";

/// A zip entry as Python reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedEntry {
    /// Ends with a slash if the entry is a directory.
    pub name: Vec<u8>,
    /// File type and permissions, as in `st_mode`.
    pub mode: u32,
    /// SHA-256 of the content in hex; empty for a directory.
    pub sha256: String,
}

/// Mode and SHA-256 of each entry, by name. Names of directories have no trailing slash.
pub type ZipListing = BTreeMap<Vec<u8>, (u32, String)>;

/// Lists a zip with Python, in its order, after `unzip -t` has verified it. Returns `None` if Python
/// is not installed. Panics if a program rejects the zip.
pub fn list_zip(zip: &Path) -> Option<Vec<ListedEntry>> {
    test_zip(zip);
    let Ok(listed) = Command::new("python3").args(["-c", LIST]).arg(zip).output() else {
        report_skipped("a zip as Python sees it", "python3 is not installed");
        return None;
    };
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    Some(String::from_utf8(listed.stdout).expect("hex").lines().map(listed_entry).collect())
}

/// Lists a zip as [`list_zip`] does, by name.
pub fn list_by_name(zip: &Path) -> Option<ZipListing> {
    let by_name = |mut entry: ListedEntry| {
        entry.name.pop_if(|last| *last == b'/');
        (entry.name, (entry.mode, entry.sha256))
    };
    Some(list_zip(zip)?.into_iter().map(by_name).collect())
}

/// Verifies a zip with `unzip -t`, if it is installed.
pub fn test_zip(zip: &Path) {
    match Command::new("unzip").arg("-tqq").arg(zip).output() {
        Ok(tested) => assert!(tested.status.success(), "{}", String::from_utf8_lossy(&tested.stdout)),
        Err(_) => report_skipped("a zip as unzip sees it", "unzip is not installed"),
    }
}

fn listed_entry(line: &str) -> ListedEntry {
    let [name, mode, sha256] = line.splitn(3, ',').collect::<Vec<_>>()[..] else { panic!("{line:?}") };
    let byte = |at| u8::from_str_radix(&name[at..at + 2], 16).expect("hex");
    let name = (0..name.len()).step_by(2).map(byte).collect();
    ListedEntry { name, mode: mode.parse().expect("a mode"), sha256: sha256.to_owned() }
}

/// Returns the listing that a zip of this tree must have.
pub fn expected_listing(tree: &Tree) -> ZipListing {
    tree.iter().map(|(path, entry)| (path.clone(), (entry.mode, entry.sha256.clone()))).collect()
}
