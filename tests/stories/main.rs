//! What users of Podling live through, with the real binaries.

mod repository;
