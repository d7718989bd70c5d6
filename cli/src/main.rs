//! podling
fn main() {}
