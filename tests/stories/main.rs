//! What users of Podling live through, with the real binaries.

mod archives;
mod bedtime;
mod broken_line;
mod broken_programs;
mod commands;
mod crashes;
mod evenings;
mod false_control;
mod first_run;
mod foreign_clients;
mod http;
mod lost_and_found;
mod repository;
mod room;
mod scarcity;
mod stalled_store;
mod stores;
mod strangers;
mod tokens;
mod viewers;
mod web;
