//! A terminal of a workspace on the terminal we run in.
//!
//! [`session`] keeps it going over broken links; the rest are its parts: what was typed and is not yet acknowledged
//! ([`outbox`]), what arrives on stdin without being typed ([`classify`]), what is on its way to the screen ([`display`]), what
//! has to be put back at the end ([`modes`], [`raw`]), what people are told from outside of the terminal ([`notifications`]).

pub mod classify;
pub mod connection;
pub mod display;
pub mod key;
pub mod modes;
pub mod notifications;
pub mod outbox;
pub mod raw;
pub mod session;
