//! The HTTP server: listeners, connections and routers. The public router authenticates each
//! request before a handler runs. The agents' service checks the credentials of agents itself.

mod auth;
mod connections;
mod cors;
pub(crate) mod limits;
mod listener;
mod router;
mod tasks;
mod tcp_acceptor;
mod unauthenticated;
mod validate;

pub use connections::ShutdownSignals;
pub use cors::cors;
pub use listener::ServerListener;
pub use router::{AgentsRouter, PublicRouter};
pub use tasks::ConnectionTasks;
pub use tcp_acceptor::TcpAcceptor;
pub use unauthenticated::{AuthenticatedGuard, ConnectionState};
