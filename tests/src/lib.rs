//! podling-tests
