//! What users of Podling live through, with the real binaries.

mod evenings;
mod everywhere;
mod false_control;
mod first_run;
mod foreign_clients;
mod races;
mod replay;
mod repository;
mod scarcity;
mod silence;
mod strangers;
