//! The server: doors, connections, and the front that knows who calls before anybody else is asked.

mod auth;
mod connections;
mod cors;
mod form;
mod front;
pub(crate) mod limits;
mod listener;
mod strangers;
mod tasks;

pub use connections::Stopping;
pub use cors::cors;
pub use front::{AgentsFront, Front};
pub use listener::Listener;
pub use strangers::{Known, Peer};
pub use tasks::Tasks;
