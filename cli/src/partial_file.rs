//! Names a temporary file beside its destination. The caller renames the file once it is complete.

use std::path::{Path, PathBuf};

use podling_proto::token;

/// Number of random bytes in the name.
const SUFFIX_BYTES: usize = 6;

/// Path of a temporary file. Dropping it removes the file, unless the file was renamed.
#[derive(Debug)]
pub struct PartialFile(PathBuf);

impl PartialFile {
    /// Chooses a unique hidden name in the directory of `path`. Creates no file.
    pub fn beside(path: &Path) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Self(path.with_file_name(format!(".{name:.200}.{}.part", token::random(SUFFIX_BYTES))))
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
