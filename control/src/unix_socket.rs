//! Binds and connects to unix sockets whose paths are longer than `sun_path` (107 bytes). The short
//! path leads through a descriptor of the socket's directory.

use std::{
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::PermissionsExt, net::UnixListener as StdListener},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags};
use tokio::net::{UnixListener, UnixStream};

/// Listens at `path` with mode 0600. Replaces an existing socket. The caller must ensure that no
/// process listens on it.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
    let (_folder, short) = short(path)?;
    match std::fs::remove_file(&short) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = StdListener::bind(&short)?;
    std::fs::set_permissions(&short, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

pub(crate) async fn connect(path: &Path) -> io::Result<UnixStream> {
    let (_folder, short) = short(path)?;
    UnixStream::connect(short).await
}

/// Returns a short path to the same file, and the descriptor that the path needs to stay valid.
fn short(path: &Path) -> io::Result<(OwnedFd, PathBuf)> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the path of a socket must name a file in a directory",
        ));
    };
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(directory, flags, Mode::empty())?;
    let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    Ok((directory, short))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn socket_below_long_path_is_reachable() {
        let directory = tempfile::tempdir().expect("directory");
        let deep = directory.path().join("x".repeat(120)).join("y".repeat(120));
        std::fs::create_dir_all(&deep).expect("directories");
        let path = deep.join("control.sock");
        let listener = bind(&path).expect("bind");
        let (client, server) = tokio::join!(connect(&path), listener.accept());
        assert!(client.is_ok() && server.is_ok());
        assert_eq!(path.metadata().expect("metadata").permissions().mode() & 0o777, 0o600);
        assert!(bind(&path).is_ok(), "a socket left by a crash is replaced");
    }
}
