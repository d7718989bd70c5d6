//! Each arrow of the drawing, as a table: when it is followed, when it is not, and what is ordered at its end.

mod ending;
mod given;
mod next;
mod seen;
mod serving;
mod sleeping;
mod starting;
mod storage;
mod twice;
