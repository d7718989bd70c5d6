//! The driver with a real store and a backend that runs nothing, alone and with its edges.

mod api;
mod door;
mod fake;
mod life;
mod links;
mod plane;
mod saving;
