//! Byte streams over TCP and unix sockets, and servers that accept them at a free address.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    task::JoinSet,
};

/// A free port of this machine, to listen on.
pub const FREE_PORT: DialAddress = DialAddress::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0));

/// Address of an agent, or of the control plane's listener for agents.
#[derive(Debug, Clone)]
pub enum DialAddress {
    /// Path of a socket, which may be longer than a socket address permits (108 bytes).
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// A connection of either kind.
pub type BoxedStream = Box<dyn ByteStream>;

/// The bounds of a connection's type.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// A server that accepts connections. Dropping it closes all of them.
#[derive(Debug)]
pub struct TestServer {
    /// Address that the server listens on, with the port in place of 0.
    pub address: DialAddress,
    _tasks: JoinSet<()>,
}

enum BoundListener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

// === impl DialAddress ===

impl DialAddress {
    /// Connects to this address.
    ///
    /// # Errors
    ///
    /// Fails if nothing listens there.
    pub async fn connect(&self) -> io::Result<BoxedStream> {
        Ok(match self {
            Self::Unix(path) => Box::new(connect_unix(path).await?),
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
        })
    }

    /// Returns the IP address and port. Panics for a unix socket.
    pub fn tcp(&self) -> SocketAddr {
        match self {
            Self::Tcp(address) => *address,
            Self::Unix(path) => panic!("{} is a unix socket", path.display()),
        }
    }
}

async fn connect_unix(socket: &Path) -> io::Result<UnixStream> {
    // A path through the directory's descriptor is short, however deep the directory is.
    let dir = fs::File::open(socket.parent().unwrap_or(Path::new("/")))?;
    let name = socket.file_name().unwrap_or_default();
    let short = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
    UnixStream::connect(short).await
}

// === impl TestServer ===

impl TestServer {
    /// Listens at `at` and calls `serve` for each connection, in the order of their arrival. Replaces
    /// the socket of an earlier server.
    pub async fn start<F, S>(at: &DialAddress, serve: S) -> Self
    where
        S: Fn(BoxedStream) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let (listener, address) = match at {
            DialAddress::Unix(path) => {
                let _ = fs::remove_file(path);
                (BoundListener::Unix(UnixListener::bind(path).expect("a socket")), at.clone())
            }
            DialAddress::Tcp(at) => {
                let listener = TcpListener::bind(at).await.expect("a free port");
                let address = DialAddress::Tcp(listener.local_addr().expect("an address"));
                (BoundListener::Tcp(listener), address)
            }
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok(stream) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                connections.spawn(serve(stream));
            }
        });
        Self { address, _tasks: tasks }
    }
}

impl BoundListener {
    async fn accept(&self) -> io::Result<BoxedStream> {
        Ok(match self {
            Self::Unix(listener) => Box::new(listener.accept().await?.0),
            Self::Tcp(listener) => {
                let stream = listener.accept().await?.0;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
        })
    }
}
