//! Signals: their exit codes, and those that end a command of this program.

use std::{future::poll_fn, io, task::Poll};

use podling_proto::signal::{name, number};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::CommandFailure;

/// Offset that shells add to a signal number to form an exit code.
const SIGNALLED: u8 = 128;

/// Listener for the signals that end a program, with their names.
#[derive(Debug)]
pub struct TerminationSignals(Vec<(Signal, &'static str)>);

impl TerminationSignals {
    /// Replaces the default action of these signals from now on.
    pub fn listen() -> Result<Self, CommandFailure> {
        let kinds =
            [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()];
        let listen = |kind| Ok((signal(kind)?, name(kind.as_raw_value()).unwrap_or_default()));
        let signals = kinds.into_iter().map(listen).collect::<io::Result<_>>();
        signals.map(Self).map_err(CommandFailure::io("cannot listen for signals"))
    }

    /// Returns the name of the next signal, without SIG. Cancel-safe.
    pub async fn next(&mut self) -> &'static str {
        poll_fn(|context| {
            let received = |(signal, name): &mut (Signal, &'static str)| {
                signal.poll_recv(context).is_ready().then_some(*name)
            };
            self.0.iter_mut().find_map(received).map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

/// Returns the exit code for a process that this signal ended. Returns 128 for a name that is not
/// known, such as a real-time signal.
pub fn exit_code(name: &str) -> u8 {
    SIGNALLED + number(name).unwrap_or_default()
}

/// Returns the exit code for the end of a local process.
pub fn exit_code_of_status(status: std::process::ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code & 0xff).unwrap_or(u8::MAX),
        (None, signal) => exit_code(signal.and_then(name).unwrap_or_default()),
    }
}

/// Awaits `work`. A signal that arrives first drops the work, which removes its temporary files, and
/// fails with [`CommandFailure::Interrupted`].
pub async fn until_signal<T>(
    work: impl Future<Output = Result<T, CommandFailure>>,
) -> Result<T, CommandFailure> {
    let mut signals = TerminationSignals::listen()?;
    tokio::select! {
        done = work => done,
        name = signals.next() => Err(CommandFailure::Interrupted { name, code: exit_code(name) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signal_maps_to_shell_exit_code() {
        for (signal, code) in [("INT", 130), ("SIGKILL", 137), ("TERM", 143), ("PIPE", 141), ("RTMIN+3", 128)]
        {
            assert_eq!(exit_code(signal), code);
        }
    }
}
