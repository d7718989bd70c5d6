//! The commands, one file each.

pub mod archive;
pub mod attach;
pub mod completions;
pub mod cp;
pub mod create;
pub mod down;
pub mod explain;
pub mod keep_awake;
pub mod ls;
pub mod rm;
pub mod run;
pub mod token;
pub mod up;
