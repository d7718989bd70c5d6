//! A TCP listener that a standby replica hands to the server when it becomes the leader.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
};

use tokio::net::{TcpListener, TcpStream};

/// A listener, and connections that were accepted before the server started.
#[derive(Debug)]
pub struct TcpAcceptor {
    listener: TcpListener,
    waiting: Mutex<VecDeque<TcpStream>>,
}

impl TcpAcceptor {
    pub fn new(listener: TcpListener) -> Self {
        Self { listener, waiting: Mutex::default() }
    }

    /// Lets a connection wait. [`Self::accept`] returns it before it accepts new ones.
    pub fn put_back(&self, connection: TcpStream) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push_back(connection);
    }

    /// Accepts a connection. Cancelling this loses none.
    pub async fn accept(&self) -> io::Result<TcpStream> {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        match waiting {
            Some(connection) => Ok(connection),
            None => Ok(self.listener.accept().await?.0),
        }
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}
