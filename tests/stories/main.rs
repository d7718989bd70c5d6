//! End-to-end tests ("stories"), which use the real binaries as users do.

mod both_backends;
mod control_plane_authentication;
mod day_in_life;
mod first_run;
mod full_disk;
mod lost_secrets;
mod replay;
mod repository;
mod templates;
mod undelete;
