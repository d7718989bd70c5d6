//! Tables for each transition of the drawing in `decide.rs`: when the transition applies, when it
//! does not, and which action is due after it.

mod deletion;
mod fixture;
mod idempotence;
mod next_step;
mod observed;
mod serving;
mod sleeping;
mod starting;
mod storage;
