//! Tests of the driver, alone and behind its APIs, with a backend that runs nothing.

mod admission;
mod agent_sessions;
mod agents_endpoint;
mod api;
mod control_plane;
mod drain_idle;
mod edits;
mod failed_writes;
mod fake_archiver;
mod fake_backend;
mod fake_store;
mod json;
mod json_client;
mod lifecycle;
mod openapi;
mod progress;
mod sleep;
mod storage;
mod waiting_starts;
