//! A workspace terminal shown on the local terminal.
//!
//! [`session`] keeps the terminal attached across broken connections. Its parts are: [`outbox`]
//! (typed input that is not yet acknowledged), [`classify`] (separates keystrokes from replies of
//! the terminal emulator), [`display`] (output on its way to the screen), [`modes`] and [`raw`]
//! (what must be restored at the end), and [`notifications`] (sleep warnings and wake progress).

pub mod classify;
pub mod connection;
pub mod display;
pub mod key;
pub mod modes;
pub mod notifications;
pub mod outbox;
pub mod raw;
pub mod session;
