//! Names a temporary file beside its destination. The caller renames the file once it is complete.

use std::{
    ffi::OsString,
    fs::File,
    io,
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::OpenOptionsExt as _,
    },
    path::{Path, PathBuf},
};

use podling_proto::token;

/// Number of random bytes in the name.
const SUFFIX_BYTES: usize = 6;
/// Bytes of the destination's name in the temporary name. File systems limit a name to 255 bytes,
/// and some to 143.
const MAX_PREFIX_BYTES: usize = 100;

/// A temporary file. Dropping it removes the file, unless the file was renamed.
#[derive(Debug)]
pub struct PartialFile(PathBuf);

impl PartialFile {
    /// Creates a file with a unique hidden name in the directory of `path`. The umask applies to
    /// `mode`. Blocks only for the call, so that no creation is in flight when the value is dropped.
    pub fn create_beside(path: &Path, mode: u32) -> io::Result<(Self, File)> {
        let partial_file = Self(path.with_file_name(partial_name(path)));
        let file = File::options().write(true).create_new(true).mode(mode).open(&partial_file.0)?;
        Ok((partial_file, file))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        // Fails if the file was renamed, and then there is nothing to remove.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn partial_name(path: &Path) -> OsString {
    let name = path.file_name().unwrap_or_default().as_bytes();
    let mut end = name.len().min(MAX_PREFIX_BYTES);
    // A character of several bytes is not cut.
    while end > 0 && name.get(end).is_some_and(|byte| byte & 0xc0 == 0x80) {
        end -= 1;
    }
    let suffix = format!(".{}.part", token::random(SUFFIX_BYTES));
    OsString::from_vec([b".", &name[..end], suffix.as_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partial_name_fits_for_longest_names() {
        let directory = tempfile::tempdir().expect("a directory");
        for name in ["a".repeat(255), "漢".repeat(85), "é".repeat(127), "🦀".repeat(63), "x".to_owned()] {
            let path = directory.path().join(&name);
            let (partial_file, _) = PartialFile::create_beside(&path, 0o600).expect("created");
            let shown = partial_file.path().file_name().and_then(|name| name.to_str()).expect("UTF-8");
            assert!(shown.len() <= 143 && shown.ends_with(".part"), "{shown}");
            std::fs::rename(partial_file.path(), &path).expect("renamed");
        }
        assert_eq!(std::fs::read_dir(directory.path()).expect("a directory").count(), 5);
    }

    #[test]
    fn unfinished_file_is_removed_on_drop() {
        let directory = tempfile::tempdir().expect("a directory");
        drop(PartialFile::create_beside(&directory.path().join("a"), 0o600).expect("created"));
        assert_eq!(std::fs::read_dir(directory.path()).expect("a directory").count(), 0);
    }
}
