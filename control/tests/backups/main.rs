//! Stories about the backup store: what is written is proven, and what is not as it was written is found.

mod damage;
mod faults;
mod hostile;
mod large;
mod objects;
mod sample;
mod store;
mod whole;

use std::{error::Error, fmt::Write};

use podling_control::backup_store::{BackupStoreError, EscapedName};

/// All that an error says, its causes too.
fn words(error: &BackupStoreError) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _infallible = write!(words, ": {error}");
        cause = error.source();
    }
    words
}

/// The damaged entry's name, and what is wrong.
fn damage<T: std::fmt::Debug>(result: Result<T, BackupStoreError>) -> (Option<String>, String) {
    match result {
        Err(BackupStoreError::Damaged { entry, problem, .. }) => {
            (entry.as_ref().map(EscapedName::to_string), problem)
        }
        other => panic!("not damaged: {other:?}"),
    }
}

/// Why it is incomplete.
fn incomplete<T: std::fmt::Debug>(result: Result<T, BackupStoreError>) -> String {
    match result {
        Err(BackupStoreError::Incomplete(reasons)) => reasons.to_string(),
        other => panic!("not incomplete: {other:?}"),
    }
}
