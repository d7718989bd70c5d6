//! Shows a terminal of a workspace on the local terminal.
//!
//! [`session`] keeps the terminal attached across broken connections. Its parts:
//!
//! - [`connection`] opens the streams to the agent.
//! - [`classify`] separates keystrokes from replies of the terminal emulator.
//! - [`outbox`] queues input until the agent acknowledges it.
//! - [`display`] queues output on its way to the screen.
//! - [`raw`] and [`modes`] restore the local terminal at the end.
//! - [`notifications`] has the sleep warnings and the progress of a wake.
//! - [`key`] parses the detach key, and [`key_event`] decodes keys of keyboard protocols.

pub mod classify;
pub mod connection;
pub mod display;
pub mod key;
pub mod key_event;
pub mod modes;
pub mod notifications;
pub mod outbox;
pub mod raw;
pub mod session;
