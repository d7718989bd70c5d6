//! Secret files: written whole or not at all, readable by their owner only. Must not know what is in them.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use podling_proto::token;

/// Largest secret file that is read, in bytes: keys and tokens are far smaller, so a larger one is something else.
const MAX_BYTES: u64 = 64 * 1024;

/// Why a secret file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    /// Others may read it, or it is somebody else's.
    #[error(
        "{path} could be read by others ({problem}), so it is no secret. If nobody has seen it: chmod 600 {path}; \
         else delete it and start again, and a new one is made",
        path = path.display()
    )]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its mode or owner.
        problem: String,
    },
    /// A folder of somebody else's: we would lock its owner out, or be at its owner's mercy.
    #[error("{path} belongs to user {user}, not to the one who runs this: be that user, or give another folder", path = path.display())]
    Foreign {
        /// Which folder.
        path: PathBuf,
        /// Whose it is.
        user: u32,
    },
    /// It is there but holds nothing that can be used.
    #[error("{path} holds no {what}: restore it, or delete it and start again, and a new one is made", path = path.display())]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// The system refused.
    #[error("{operation} {path}", path = path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// With which file or folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Makes a folder that only its owner can enter, with its parents; tightens one that is there, if it is ours.
pub fn create_private_dir(path: &Path) -> Result<(), SecretFileError> {
    let io = |operation| move |source| SecretFileError::Io { operation, path: path.to_owned(), source };
    if let Ok(meta) = fs::metadata(path)
        && meta.uid() != rustix::process::geteuid().as_raw()
    {
        return Err(SecretFileError::Foreign { path: path.to_owned(), user: meta.uid() });
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io("making the folder"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(io("making private the folder"))
}

/// Writes a file whole with mode 0600: a reader, or a crash, sees the old content or the new.
pub fn write(path: &Path, content: &[u8]) -> Result<(), SecretFileError> {
    let io = |operation| move |source| SecretFileError::Io { operation, path: path.to_owned(), source };
    let folder = path.parent().unwrap_or(Path::new("."));
    let temporary = folder.join(format!(".{}.tmp", token::random(9)));
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(folder)?.sync_all()
    })();
    written.map_err(|source| {
        let _gone = fs::remove_file(&temporary);
        io("writing")(source)
    })
}

/// Reads a secret; `None` if there is none yet.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, SecretFileError> {
    let io = |source| SecretFileError::Io { operation: "reading", path: path.to_owned(), source };
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
        return exposed(format!("it belongs to user {}", meta.uid()));
    }
    let mut content = Vec::new();
    Read::by_ref(&mut file).take(MAX_BYTES).read_to_end(&mut content).map_err(io)?;
    Ok(Some(content))
}
