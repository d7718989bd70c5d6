//! The name a file has until it is whole: it is written beside its place, then renamed over what is there.

use std::path::{Path, PathBuf};

use podling_proto::token;

/// Random bytes in the name.
const SUFFIX_BYTES: usize = 6;

/// Where a file is until it is whole; removed if it never is.
#[derive(Debug)]
pub struct PartialFile(PathBuf);

impl PartialFile {
    /// For a file that is to be `path`.
    pub fn beside(path: &Path) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Self(path.with_file_name(format!(".{name:.200}.{}.part", token::random(SUFFIX_BYTES))))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        // Renamed when whole, and then there is nothing left to remove.
        let _ = std::fs::remove_file(&self.0);
    }
}
