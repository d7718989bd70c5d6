//! Copying between here and a workspace.
//!
//! First a plan is made of what there is to copy ([`plan`]), then it is carried out, several files at a time. A file arrives whole
//! or not at all: on either side it is written under another name, checked and renamed.

pub mod download;
pub mod place;
pub mod plan;
pub mod upload;

/// Files under way at once: enough to hide the way there and back of small ones.
const AT_ONCE: usize = 8;
/// How often a file is tried over new links before it is given up.
const TRIES: u32 = 6;
