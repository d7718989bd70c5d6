//! Ends a command on a signal and removes its temporary files.

use crate::{failure::CommandFailure, run::input::TerminationSignals};

/// Awaits `work`. A signal that arrives first drops the work, which removes its temporary files, and
/// fails with [`CommandFailure::Interrupted`].
pub async fn until_signal<T>(
    work: impl Future<Output = Result<T, CommandFailure>>,
) -> Result<T, CommandFailure> {
    let mut signals =
        TerminationSignals::listen().map_err(CommandFailure::io("cannot listen for signals"))?;
    tokio::select! {
        done = work => done,
        name = signals.next() => Err(CommandFailure::Interrupted(name)),
    }
}
