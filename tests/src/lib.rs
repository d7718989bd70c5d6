//! The harness of the end-to-end stories: it starts the real binaries, speaks to them as their users do, breaks things on
//! purpose, and sees to it that nothing is left running.
//!
//! Stories say what a user does ([`Podling`], [`Client`], [`Cli`]); where workspaces run is known to `podling` alone, so that
//! the same stories can meet another backend.

pub mod agent;
pub mod cli;
pub mod client;
pub mod cluster;
pub mod control;
pub mod deployed;
pub mod direct;
pub mod disk;
pub mod grpc_web;
pub mod http;
pub mod left_out;
pub mod left_running;
pub mod nights;
pub mod parted;
pub mod person;
pub mod podling;
pub mod program;
pub mod proxy;
pub mod pty;
pub mod suspended;
pub mod tls;
pub mod tools;
pub mod trace;
pub mod tree;
pub mod typist;
pub mod wait;
pub mod work;
pub mod zips;

pub use cli::{Cli, Done};
pub use client::{Client, Link};
pub use disk::SmallDisk;
pub use left_out::left_out;
pub use podling::{Options, Podling, Workspace};
pub use wait::{wait_for, wait_long, within};
