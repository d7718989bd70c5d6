//! Forwards signals that the container's init receives to the process group of the workspace's
//! command.
//!
//! TERM and INT are for the agent itself, which then ends everything in order (see
//! [`super::handle_termination_signals`]). These are not forwarded either:
//!
//! - CHLD, and signals by which the kernel reports on a process itself: faults (SEGV, BUS, ILL,
//!   FPE, TRAP, SYS, ABRT), PIPE, URG, IO, VTALRM, PROF, XCPU, XFSZ.
//! - TSTP, TTIN, TTOU: job control, and the command has no terminal. A user who runs the agent by
//!   hand may stop it with Ctrl-Z.
//! - PWR and real-time signals, whose meaning depends on the init or program.
//!
//! KILL and STOP cannot be caught. Signals are dropped while no command runs.

use std::{
    convert::Infallible,
    future::poll_fn,
    io,
    sync::{Arc, Mutex, MutexGuard},
    task::Poll,
};

use rustix::process::Signal;
use tokio::signal::unix::{self, SignalKind, signal};

use crate::child::{ProcessGroup, signals};

/// Forwarded signals. By convention they make servers reload their configuration, reopen their
/// logs, or end.
const FORWARDED_SIGNALS: [Signal; 7] =
    [Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2, Signal::ALARM, Signal::CONT, Signal::WINCH];

/// Process group of the running command. Cheap to clone; all clones share it.
#[derive(Debug, Clone, Default)]
pub struct RunningCommand(Arc<Mutex<Option<ProcessGroup>>>);

/// Clears the running command when dropped.
#[derive(Debug)]
pub(super) struct RunningCommandGuard(RunningCommand);

impl RunningCommand {
    pub(super) fn begin(&self, group: ProcessGroup) -> RunningCommandGuard {
        *self.group() = Some(group);
        RunningCommandGuard(self.clone())
    }

    /// Forwards signals forever. Exactly one task runs this.
    pub async fn forward(&self) -> io::Result<Infallible> {
        let listen = |forwarded: Signal| Ok((forwarded, signal(SignalKind::from_raw(forwarded.as_raw()))?));
        let mut streams: Vec<(Signal, unix::Signal)> =
            FORWARDED_SIGNALS.into_iter().map(listen).collect::<io::Result<_>>()?;
        loop {
            let signal = next(&mut streams).await;
            let passed = self.group().as_ref().is_some_and(|group| group.signal(signal));
            tracing::info!(
                signal = signals::name(signal.as_raw()),
                forwarded = passed,
                "signal for the workspace command"
            );
        }
    }

    fn group(&self) -> MutexGuard<'_, Option<ProcessGroup>> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Drop for RunningCommandGuard {
    fn drop(&mut self) {
        *self.0.group() = None;
    }
}

async fn next(streams: &mut [(Signal, unix::Signal)]) -> Signal {
    poll_fn(|cx| {
        let ready = streams
            .iter_mut()
            .find_map(|(signal, stream)| stream.poll_recv(cx).is_ready().then_some(*signal));
        ready.map_or(Poll::Pending, Poll::Ready)
    })
    .await
}
