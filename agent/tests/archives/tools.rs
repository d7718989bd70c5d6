//! Checks zips with other programs: Python and Info-ZIP's unzip.

use std::{fs, path::Path, process::Command};

use crate::skipped::report_skipped;

/// A zip entry as Python reads it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ListedEntry {
    pub(crate) name: Vec<u8>,
    /// File type and permission bits.
    pub(crate) mode: u32,
    pub(crate) sha256: String,
}

const LIST: &str = "
import hashlib, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as z:
    assert z.testzip() is None
    for i in z.infolist():
        name = i.filename.encode('utf-8' if i.flag_bits & 0x800 else 'cp437')
        print(name.hex(), i.external_attr >> 16, hashlib.sha256(z.read(i)).hexdigest())
";

/// Checks that unzip and Python find a zip intact, and returns the entries that Python reads.
/// Returns `None` if Python is not installed.
pub(crate) fn list_with_tools(zip: &[u8]) -> Option<Vec<ListedEntry>> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("it.zip");
    fs::write(&file, zip).unwrap();
    check(&file);
    let listed = Command::new("python3").args(["-c", LIST]).arg(&file).output();
    let Ok(listed) = listed else {
        report_skipped("check of a zip with Python", "python3 is not installed");
        return None;
    };
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let text = String::from_utf8(listed.stdout).unwrap();
    Some(text.lines().map(listed_entry).collect())
}

/// Checks a zip with `unzip -t`, if it is installed.
pub(crate) fn check(file: &Path) {
    let Ok(tested) = Command::new("unzip").arg("-tqq").arg(file).output() else {
        return report_skipped("check of a zip with unzip", "unzip is not installed");
    };
    assert!(tested.status.success(), "{}", String::from_utf8_lossy(&tested.stdout));
}

fn listed_entry(line: &str) -> ListedEntry {
    let mut words = line.split(' ');
    let mut word = || words.next().unwrap();
    let name = word();
    let name =
        (0..name.len() / 2).map(|n| u8::from_str_radix(&name[2 * n..2 * n + 2], 16).unwrap()).collect();
    ListedEntry { name, mode: word().parse().unwrap(), sha256: word().to_owned() }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
