//! Listens on a Unix socket or on TCP.

use std::{
    io,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    time::Duration,
};

use podling_proto::procfs::SocketPath;
use rustix::{
    fs::{Mode, fchmod},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener, UnixStream},
    time::sleep,
};

use crate::config::ListenAddress;

/// Connections that the kernel queues until they are accepted. When the queue is full, clients are
/// rejected or wait.
const BACKLOG: i32 = 256;
/// Delay after a failed accept, for example because descriptors or memory are exhausted.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}")]
pub struct ListenError {
    address: String,
    source: io::Error,
}

#[derive(Debug)]
pub enum AgentListener {
    /// A Unix socket and its path.
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener),
}

/// A byte stream to a client, over TCP or a Unix socket.
pub trait ClientSocket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ClientSocket for T {}

impl AgentListener {
    pub async fn bind(at: &ListenAddress) -> Result<Self, ListenError> {
        match at {
            ListenAddress::Unix(path) => {
                let failed = |source| ListenError { address: format!("unix:{}", path.display()), source };
                Ok(Self::Unix(bind_unix(path).await.map_err(failed)?, path.clone()))
            }
            ListenAddress::Tcp(address) => {
                let failed = |source| ListenError { address: address.to_string(), source };
                Ok(Self::Tcp(TcpListener::bind(address).await.map_err(failed)?))
            }
        }
    }

    /// Returns the address for clients: `unix:PATH` or `IP:PORT`.
    pub fn address(&self) -> io::Result<String> {
        match self {
            Self::Unix(_, path) => Ok(format!("unix:{}", path.display())),
            Self::Tcp(listener) => Ok(listener.local_addr()?.to_string()),
        }
    }

    /// Accepts the next connection. Retries after errors that are temporary or concern one
    /// connection. Returns an error if the listener itself is unusable. Cancel-safe.
    pub async fn accept(&self) -> io::Result<Box<dyn ClientSocket>> {
        loop {
            let taken = match self {
                Self::Unix(listener, _) => {
                    listener.accept().await.map(|(io, _)| Box::new(io) as Box<dyn ClientSocket>)
                }
                Self::Tcp(listener) => listener.accept().await.map(|(io, _)| {
                    // Nagle's algorithm would delay keystrokes. A failure here costs only latency.
                    let _set = io.set_nodelay(true);
                    Box::new(io) as Box<dyn ClientSocket>
                }),
            };
            match taken {
                Ok(io) => return Ok(io),
                Err(error) if is_listener_lost(&error) => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "failed to accept a connection");
                    sleep(ACCEPT_RETRY_DELAY).await;
                }
            }
        }
    }
}

/// Returns whether an error of accept(2) means that the descriptor itself is unusable.
fn is_listener_lost(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(
        Errno::from_io_error(error),
        Some(Errno::BADF | Errno::INVAL | Errno::NOTSOCK | Errno::OPNOTSUPP | Errno::FAULT)
    )
}

/// Binds a socket with mode 0600.
async fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    let socket_path = SocketPath::open(path)?;
    let short = socket_path.short();
    remove_stale(short).await?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // The mode is set before the socket has a name, so that no other user can ever connect.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &SocketAddrUnix::new(short)?)?;
    listen(&socket, BACKLOG)?;
    UnixListener::from_std(std::os::unix::net::UnixListener::from(socket))
}

/// Removes the socket of a process that has ended. Fails if another kind of file is at `path`, or
/// if a process may still listen there.
async fn remove_stale(path: &Path) -> io::Result<()> {
    let Ok(found) = path.symlink_metadata() else {
        return Ok(());
    };
    if !found.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "the path exists and is not a socket; choose another path",
        ));
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        _ => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another process is listening on this socket; stop it or choose another path",
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn long_socket_path_works_and_stale_socket_is_replaced() {
        let dir = tempfile::tempdir().expect("dir");
        let deep = dir.path().join("x".repeat(120));
        std::fs::create_dir(&deep).expect("directory");
        let at = ListenAddress::Unix(deep.join("agent.sock"));
        let first = AgentListener::bind(&at).await.expect("listens");
        let mode = deep.join("agent.sock").metadata().expect("socket").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let error = AgentListener::bind(&at).await.expect_err("taken");
        assert_eq!(error.source.kind(), io::ErrorKind::AddrInUse);
        drop(first);
        AgentListener::bind(&at).await.expect("the stale socket is replaced");
    }

    #[tokio::test]
    async fn existing_file_at_socket_path_is_kept() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("agent.sock");
        std::fs::write(&path, "mine").expect("file");
        AgentListener::bind(&ListenAddress::Unix(path.clone())).await.expect_err("in the way");
        assert_eq!(std::fs::read(&path).expect("still there"), b"mine");
    }
}
