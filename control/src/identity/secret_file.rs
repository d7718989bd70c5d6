//! Secret files. They are written atomically, and only the user of this process may access them.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use tempfile::Builder;

/// Bytes that are read of a secret file. Keys and tokens are far smaller, so a file that is cut off
/// here is not one of them.
pub(crate) const MAX_BYTES: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    /// The file's mode lets other users access it, or another user owns it.
    #[error(
        "other users can access {path} ({problem}); if its content has not leaked, make yourself its owner \
         and run `chmod 600 {path}`, otherwise delete it and start once with --create-missing-secrets",
        path = path.display()
    )]
    Exposed {
        path: PathBuf,
        /// The file's mode or owner, as the message shows it.
        problem: String,
    },
    /// The directory belongs to another user. A new mode would lock that user out, and that user
    /// could replace the secret files.
    #[error(
        "{path} belongs to user {user}, but this process runs as another user; run Podling as that user or \
         choose another directory",
        path = path.display()
    )]
    Foreign { path: PathBuf, user: u32 },
    /// The file's content cannot be parsed as `what`.
    #[error(
        "{path} {problem}does not contain {what}; restore it from a backup, or, if there is no backup, \
         delete it and start once with --create-missing-secrets: {consequence}",
        path = path.display()
    )]
    Unusable {
        path: PathBuf,
        /// Precedes "does not contain" in the message, with a space at the end. May be empty.
        problem: &'static str,
        what: &'static str,
        /// The effect of a new secret.
        consequence: String,
    },
    #[error("cannot {operation} {path}", path = path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
}

/// Creates a directory and its missing parents with mode 0700. Sets the mode of a directory that
/// exists. Fails with [`SecretFileError::Foreign`] if the directory belongs to another user.
pub fn create_private_dir(path: &Path) -> Result<(), SecretFileError> {
    let io = |operation| move |source| SecretFileError::Io { operation, path: path.to_owned(), source };
    if let Ok(meta) = fs::metadata(path)
        && meta.uid() != rustix::process::geteuid().as_raw()
    {
        return Err(SecretFileError::Foreign { path: path.to_owned(), user: meta.uid() });
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io("create the directory"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(io("set the mode of the directory"))
}

/// Writes a file durably with mode 0600. The write is atomic: readers see the old content or the
/// new one, also after a crash.
pub fn write(path: &Path, content: &[u8]) -> Result<(), SecretFileError> {
    let io = |source| SecretFileError::Io { operation: "write", path: path.to_owned(), source };
    replace(path, content, true).map_err(io)
}

/// Replaces a file atomically, with mode 0600. With `durable`, the content is synced to disk. The
/// temporary file beside it has a fixed name, so that the next call removes one that a crash left.
/// Only one call at a time may replace a file.
pub(crate) fn replace(path: &Path, content: &[u8], durable: bool) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let name = Path::new(&temporary).file_name().unwrap_or_default();
    let mut file = Builder::new().prefix(name).rand_bytes(0).tempfile_in(directory)?;
    file.write_all(content)?;
    if durable {
        file.as_file().sync_all()?;
    }
    file.persist(path)?;
    if durable { File::open(directory)?.sync_all() } else { Ok(()) }
}

/// Removes a secret file, if it exists.
pub(crate) fn remove(path: &Path) -> Result<(), SecretFileError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(SecretFileError::Io { operation: "remove", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Reads a secret file. Returns `None` if the file does not exist. Fails with
/// [`SecretFileError::Exposed`] if other users can access it.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, SecretFileError> {
    let io = |source| SecretFileError::Io { operation: "read", path: path.to_owned(), source };
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io(e)),
    };
    let meta = file.metadata().map_err(io)?;
    let exposed = |problem| Err(SecretFileError::Exposed { path: path.to_owned(), problem });
    if meta.mode() & 0o077 != 0 {
        return exposed(format!("mode {:03o}", meta.mode() & 0o777));
    }
    if meta.uid() != rustix::process::geteuid().as_raw() {
        return exposed(format!("owner: user {}", meta.uid()));
    }
    let mut content = Vec::new();
    Read::by_ref(&mut file).take(MAX_BYTES as u64).read_to_end(&mut content).map_err(io)?;
    Ok(Some(content))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_file_of_a_crash_is_replaced() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("agent.json");
        fs::write(directory.path().join("agent.json.new"), "half a rec").expect("leftover");
        for content in ["first", "second"] {
            replace(&path, content.as_bytes(), false).expect("replaced");
            assert_eq!(read(&path).expect("private"), Some(content.into()));
            let names = fs::read_dir(directory.path()).expect("directory");
            assert_eq!(names.count(), 1, "the leftover was removed");
        }
    }
}
