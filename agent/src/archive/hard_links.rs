//! Finds the names of files that have several (hard links), for an archive. Pure.

use std::collections::{HashMap, HashSet};

use super::{
    inspect::MAX_TARGET,
    metadata::{EntryMetadata, FileIdentity},
};
use crate::files::FileKind;

/// Bytes of the first names that are remembered. The names of further files are then archived as
/// files of their own.
const MAX_NAME_BYTES: usize = 16 * 1024 * 1024;
/// Bytes that each remembered name takes on top of its length.
const NAME_OVERHEAD_BYTES: usize = 64;

/// The first name of each file with several names, in the order of the walk.
#[derive(Debug, Default)]
pub(super) struct FirstNames {
    names: HashMap<FileIdentity, Vec<u8>>,
    bytes: usize,
}

/// The files with several names that were counted already.
#[derive(Debug, Default)]
pub(super) struct CountedFiles(HashSet<FileIdentity>);

impl FirstNames {
    /// Returns the target of a link from `path` to the first name of the same file. `None` if this
    /// is the first name, which is remembered.
    pub(super) fn target(&mut self, path: &[u8], metadata: &EntryMetadata) -> Option<Vec<u8>> {
        if metadata.kind != FileKind::File || metadata.links < 2 {
            return None;
        }
        if let Some(first) = self.names.get(&metadata.identity()) {
            return Some(relative(path, first)).filter(|target| target.len() as u64 <= MAX_TARGET);
        }
        let bytes = path.len() + NAME_OVERHEAD_BYTES;
        if self.bytes + bytes <= MAX_NAME_BYTES {
            self.bytes += bytes;
            self.names.insert(metadata.identity(), path.to_vec());
        }
        None
    }
}

impl CountedFiles {
    /// Returns whether the content of this file counts, because no other name of it was counted.
    pub(super) fn is_new(&mut self, metadata: &EntryMetadata) -> bool {
        let max_files = MAX_NAME_BYTES / NAME_OVERHEAD_BYTES;
        metadata.links < 2 || self.0.len() >= max_files || self.0.insert(metadata.identity())
    }
}

/// Returns the path of `to` relative to the directory of `from`.
fn relative(from: &[u8], to: &[u8]) -> Vec<u8> {
    let depth = from.iter().filter(|byte| **byte == b'/').count();
    [b"../".repeat(depth), to.to_vec()].concat()
}

/// Resolves the target of a link at `path`. `None` if the target is absolute, leaves the archived
/// directory or is not in the form that [`relative`] gives.
pub(super) fn resolve(path: &[u8], target: &[u8]) -> Option<Vec<u8>> {
    let depth = path.iter().filter(|byte| **byte == b'/').count();
    let first = target.strip_prefix(&b"../".repeat(depth)[..])?;
    let is_plain = first.split(|byte| *byte == b'/').all(|part| !matches!(part, b"" | b"." | b".."));
    is_plain.then(|| first.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_resolves_to_the_first_name() {
        for (from, to) in [(&b"b"[..], &b"a"[..]), (b"d/e/b", b"a"), (b"d/b", b"d/a"), (b"b", b"d/e/a")] {
            assert_eq!(resolve(from, &relative(from, to)).as_deref(), Some(to));
        }
        for (path, target) in [
            (&b"b"[..], &b"/etc/passwd"[..]),
            (b"b", b"../a"),
            (b"d/b", b"../../a"),
            (b"d/b", b"a"),
            (b"b", b"d/../../a"),
            (b"b", b"./a"),
            (b"b", b""),
            (b"b", b"d//a"),
        ] {
            assert_eq!(resolve(path, target), None, "{}", target.escape_ascii());
        }
    }
}
