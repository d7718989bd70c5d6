//! Tests of the backup store: archives are written and proven, and every later change is found.

mod damage;
mod faults;
mod hostile;
mod large;
mod objects;
mod round_trip;
mod sample;
mod store;

use podling_control::backup_store::{BackupStoreError, EscapedName};

/// Returns the name of the damaged entry and the problem. Panics unless the result is damage.
fn expect_damage<T: std::fmt::Debug>(result: Result<T, BackupStoreError>) -> (Option<String>, String) {
    match result {
        Err(BackupStoreError::Damaged { entry, problem, .. }) => {
            (entry.as_ref().map(EscapedName::to_string), problem)
        }
        other => panic!("not damaged: {other:?}"),
    }
}

/// Returns the reasons why the archive is incomplete. Panics for any other result.
fn expect_incomplete<T: std::fmt::Debug>(result: Result<T, BackupStoreError>) -> String {
    match result {
        Err(BackupStoreError::Incomplete(reasons)) => reasons.to_string(),
        other => panic!("not incomplete: {other:?}"),
    }
}
