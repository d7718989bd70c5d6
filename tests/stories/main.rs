//! What users of Podling live through, with the real binaries.

mod broken_line;
mod broken_programs;
mod commands;
mod crashes;
mod evenings;
mod first_run;
mod repository;
mod tokens;
mod viewers;
mod web;
