//! The command people type. It contains control plane and agent, and is a client of both.
//!
//! [`command`] has one file for each command; they share the way to the control plane ([`target`], [`connector`], [`client`]),
//! patience ([`backoff`], [`follow`], [`journey`], [`waiting`], [`indicator`]), and how they answer ([`output`], [`view`], [`upcoming`]) and fail ([`failure`],
//! [`many`]).

pub mod args;
pub mod attach;
pub mod backoff;
pub mod backup;
pub mod client;
pub mod command;
pub mod connector;
pub mod context;
pub mod cp;
pub mod duration;
pub mod explain;
pub mod failure;
pub mod follow;
pub mod indicator;
pub mod journey;
pub mod many;
pub mod output;
pub mod policy;
pub mod progress;
pub mod run;
pub mod share;
pub mod signal;
pub mod stdio;
pub mod target;
pub mod unfinished;
pub mod upcoming;
pub mod view;
pub mod waiting;
