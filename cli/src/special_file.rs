//! Opens pipes and devices that a user names as a source or a destination. They are read or written
//! in place, because a file renamed to their name would replace them.

use std::path::{Path, PathBuf};

use tokio::fs::OpenOptions;

use crate::{failure::CommandFailure, stdio::AsyncStdio};

/// Returns whether the path exists and is neither a file nor a directory. Follows symbolic links.
pub fn is_special(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir())
}

/// Opens a pipe or a device for reading. Waits until the other end of a pipe is opened.
pub async fn source(path: &Path) -> Result<AsyncStdio, CommandFailure> {
    let error = || CommandFailure::io(format!("cannot read {}", path.display()));
    let file = OpenOptions::new().read(true).open(path).await.map_err(error())?;
    AsyncStdio::reading(file.into_std().await).map_err(error())
}

/// Opens a pipe or a device for writing. Waits until the other end of a pipe is opened.
pub async fn sink(path: &Path) -> Result<AsyncStdio, CommandFailure> {
    let error = || CommandFailure::io(format!("cannot write {}", path.display()));
    let file = OpenOptions::new().write(true).open(path).await.map_err(error())?;
    AsyncStdio::writing(file.into_std().await).map_err(error())
}

/// Returns the path of the file that a result with this path replaces. A symbolic link, such as
/// /dev/stdout, stays, and its target is replaced.
pub fn replaced_path(path: PathBuf) -> PathBuf {
    if path.is_symlink() { path.canonicalize().unwrap_or(path) } else { path }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipes_and_devices_are_special_and_files_are_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("/dev/null", &link).expect("a link");
        assert!(is_special(&link) && is_special(Path::new("/dev/null")));
        assert!(!is_special(directory.path()) && !is_special(&directory.path().join("missing")));
        let (file, to_file) = (directory.path().join("file"), directory.path().join("to-file"));
        std::fs::write(&file, "").expect("a file");
        std::os::unix::fs::symlink("file", &to_file).expect("a link");
        assert_eq!(replaced_path(to_file), file.canonicalize().expect("a path"));
        assert_eq!(replaced_path(directory.path().join("new")), directory.path().join("new"));
    }
}
