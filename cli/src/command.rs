//! One module per subcommand.

pub mod archives;
pub mod attach;
pub mod completions;
pub mod cp;
pub mod create;
pub mod down;
pub mod explain;
pub mod export;
pub mod keep_awake;
pub mod ls;
pub mod policy;
pub mod resize;
pub mod restore;
pub mod rm;
pub mod run;
pub mod sleep;
pub mod token;
pub mod undelete;
pub mod up;
pub mod wake;
