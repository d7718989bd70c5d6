//! End-to-end tests ("stories"): what users do with Podling, with the real binaries.

mod both_backends;
mod control_plane_authentication;
mod day_in_life;
mod first_run;
mod full_disk;
mod replay;
mod repository;
