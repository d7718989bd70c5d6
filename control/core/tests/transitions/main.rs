//! Tables for each transition of the drawing in `decide.rs`: when it is followed, when it is not,
//! and which action is due after it.

mod deletion;
mod fixture;
mod idempotence;
mod next_step;
mod observed;
mod serving;
mod sleeping;
mod starting;
mod storage;
