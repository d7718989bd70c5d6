//! Copying between here and a workspace.
//!
//! First a plan is made of what there is to copy ([`plan`]), then it is carried out, several files at a time. A file arrives whole
//! or not at all: on either side it is written under another name, checked and renamed.

pub mod download;
pub mod endpoint;
pub mod plan;
pub mod upload;

/// Files under way at once: enough to hide the way there and back of small ones.
const CONCURRENT_FILES: usize = 8;
/// How often a file is tried over new links before it is given up.
const MAX_ATTEMPTS: u32 = 6;
