//! The command people type. It contains control plane and agent, and is a client of both.
//!
//! [`command`] has one file for each command; they share the way to the control plane ([`target`], [`connector`], [`client`]),
//! patience ([`backoff`], [`follow`]), and how they answer ([`output`], [`view`]) and fail ([`failure`]).

pub mod args;
pub mod attach;
pub mod backoff;
pub mod client;
pub mod command;
pub mod connector;
pub mod context;
pub mod cp;
pub mod duration;
pub mod failure;
pub mod follow;
pub mod output;
pub mod run;
pub mod signal;
pub mod stdio;
pub mod target;
pub mod unfinished;
pub mod view;
