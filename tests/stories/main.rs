//! What users of Podling live through, with the real binaries.

mod broken_line;
mod broken_programs;
mod crashes;
mod repository;
