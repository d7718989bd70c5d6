//! Tests of input, without programs.

mod sequencer;
mod writers;

use super::*;
