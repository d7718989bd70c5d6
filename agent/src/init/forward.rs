//! Signals that a container's init gets on behalf of what runs in it: passed on to the group of the workspace's command.
//!
//! TERM and INT are the agent's own: they end all in order (see [`super::heed_signals`]), the command included. Not passed on, too:
//!
//! - CHLD, and what the kernel tells a process of its own doings: faults (SEGV, BUS, ILL, FPE, TRAP, SYS, ABRT), PIPE, URG, IO,
//!   VTALRM, PROF, XCPU, XFSZ.
//! - TSTP, TTIN, TTOU: job control, and the command has no terminal. Somebody who runs the agent by hand may stop it by Ctrl-Z.
//! - PWR and real-time signals: they mean something to one init or one program only, and nobody says which.
//!
//! KILL and STOP nobody can pass on. While no command runs, a signal is for nobody and is dropped, as an init without children
//! would do.

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

/// What is passed on: how people tell a server to read its configuration, open its logs anew, or end its own way.
const FORWARDED_SIGNALS: [Signal; 7] =
    [Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2, Signal::ALARM, Signal::CONT, Signal::WINCH];

/// The group of the command that runs now. Cheap to clone; all clones are the same.
#[derive(Debug, Clone, Default)]
pub struct RunningCommand(Arc<Mutex<Option<ProcessGroup>>>);

/// The command runs as long as this lives.
#[derive(Debug)]
pub(super) struct RunningCommandGuard(RunningCommand);

impl RunningCommand {
    pub(super) fn begin(&self, group: ProcessGroup) -> RunningCommandGuard {
        *self.group() = Some(group);
        RunningCommandGuard(self.clone())
    }

    /// Passes signals on for ever; run by one owned task.
    pub async fn forward(&self) -> io::Result<Infallible> {
        let listen = |wanted: Signal| Ok((wanted, signal(SignalKind::from_raw(wanted.as_raw()))?));
        let mut heard: Vec<(Signal, unix::Signal)> =
            FORWARDED_SIGNALS.into_iter().map(listen).collect::<io::Result<_>>()?;
        loop {
            let signal = next(&mut heard).await;
            let passed = self.group().as_ref().is_some_and(|group| group.signal(signal));
            tracing::info!(signal = signals::name(signal.as_raw()), passed, "a signal for the command");
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

async fn next(heard: &mut [(Signal, unix::Signal)]) -> Signal {
    poll_fn(|cx| {
        let ready =
            heard.iter_mut().find_map(|(signal, heard)| heard.poll_recv(cx).is_ready().then_some(*signal));
        ready.map_or(Poll::Pending, Poll::Ready)
    })
    .await
}
