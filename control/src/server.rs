//! The server: listeners, connections, and the routers that authenticate each request before they
//! pass it on.

mod auth;
mod connections;
mod cors;
pub(crate) mod limits;
mod listener;
mod router;
mod tasks;
mod unauthenticated;
mod validate;

pub use connections::ShutdownSignals;
pub use cors::cors;
pub use listener::ServerListener;
pub use router::{AgentsRouter, PublicRouter};
pub use tasks::ConnectionTasks;
pub use unauthenticated::{AuthenticatedGuard, ConnectionState};
