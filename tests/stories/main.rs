//! What users of Podling live through, with the real binaries.

mod both_backends;
mod evenings;
mod false_control;
mod first_run;
mod full_disk;
mod replay;
mod repository;
