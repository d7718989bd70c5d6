//! The driver with a real store and a backend that runs nothing, alone and with its edges.

mod api;
mod door;
mod edits;
mod fake;
mod fake_keeper;
mod fake_store;
mod json;
mod json_client;
mod leave;
mod life;
mod line;
mod links;
mod openapi;
mod plane;
mod progress;
mod saving;
mod sleep;
mod storage;
mod waiting;
