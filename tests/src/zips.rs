//! Reads zips with third-party programs: `unzip -t` and Python's zipfile.

use std::{collections::BTreeMap, path::Path, process::Command};

use crate::{report_skipped, tree::Tree};

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

/// Mode (as in `st_mode`) and SHA-256 of each entry, by name. Names of directories have no trailing
/// slash.
pub type ZipListing = BTreeMap<Vec<u8>, (u32, String)>;

/// Lists a zip with Python after `unzip -t` has verified it. Returns `None` if Python is not
/// installed. Panics if a program rejects the zip.
pub fn list_zip(zip: &Path) -> Option<ZipListing> {
    match Command::new("unzip").arg("-tqq").arg(zip).output() {
        Ok(tested) => assert!(tested.status.success(), "{}", String::from_utf8_lossy(&tested.stdout)),
        Err(_) => report_skipped("a zip as unzip sees it", "unzip is not installed"),
    }
    let Ok(listed) = Command::new("python3").args(["-c", LIST]).arg(zip).output() else {
        report_skipped("a zip as Python sees it", "python3 is not installed");
        return None;
    };
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    Some(String::from_utf8(listed.stdout).expect("hex").lines().map(line).collect())
}

fn line(line: &str) -> (Vec<u8>, (u32, String)) {
    let [name, mode, sha256] = line.splitn(3, ',').collect::<Vec<_>>()[..] else { panic!("{line:?}") };
    let byte = |at| u8::from_str_radix(&name[at..at + 2], 16).expect("hex");
    let mut name: Vec<u8> = (0..name.len()).step_by(2).map(byte).collect();
    if name.ends_with(b"/") {
        name.pop();
    }
    (name, (mode.parse().expect("a mode"), sha256.to_owned()))
}

/// Returns the listing that a zip of this tree must have.
pub fn expected_listing(tree: &Tree) -> ZipListing {
    tree.iter().map(|(path, entry)| (path.clone(), (entry.mode, entry.sha256.clone()))).collect()
}
