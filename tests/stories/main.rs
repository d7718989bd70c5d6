//! What users of Podling live through, with the real binaries.

mod archives;
mod bedtime;
mod broken_line;
mod broken_programs;
mod commands;
mod crashes;
mod deaths;
mod evenings;
mod false_control;
mod first_run;
mod foreign_clients;
mod holding;
mod http;
mod nights;
mod races;
mod repository;
mod restless;
mod scarcity;
mod stores;
mod silence;
mod strangers;
mod tokens;
mod viewers;
mod web;
