//! Stories that are told of processes and of pods alike, from one source. (`cargo xtask cluster stories` tells them of pods.)

mod archives;
mod bedtime;
mod broken_line;
mod broken_programs;
mod commands;
mod crashes;
mod deaths;
mod foreign_clients;
mod holding;
mod http;
mod lost_and_found;
mod nights;
mod onlookers;
mod races;
mod restless;
mod room;
mod scarcity;
mod silence;
mod stalled_store;
mod stores;
mod strangers;
mod tokens;
mod viewers;
mod web;
