//! Runs the workspace's own command, such as an IDE. The command is started after the claim,
//! restarted when it ends, and ended with the agent. Its failures are reported with the activity.
//!
//! Signals that the container's init receives are forwarded to the command's process group, while it
//! runs. TERM and INT are for the agent itself, which then ends everything in order (see
//! [`super::handle_termination_signals`]). These are not forwarded either:
//!
//! - CHLD, and signals by which the kernel reports on a process itself: faults (SEGV, BUS, ILL,
//!   FPE, TRAP, SYS, ABRT), PIPE, URG, IO, VTALRM, PROF, XCPU, XFSZ.
//! - TSTP, TTIN, TTOU: job control, and the command has no terminal. A user who runs the agent by
//!   hand may stop it with Ctrl-Z.
//! - PWR and real-time signals, whose meaning depends on the init or program.
//!
//! KILL and STOP cannot be caught.

use std::{
    convert::Infallible,
    future::poll_fn,
    io,
    os::unix::process::CommandExt,
    process::Stdio,
    sync::{Arc, Mutex},
    task::Poll,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tokio::{
    signal::unix::{self, SignalKind, signal},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::output_tail::OutputTail;
use crate::{
    activity::{
        ActivityMonitor,
        notices::{CommandFailure, CommandFailureCause},
    },
    child::{Children, ExitStatus, ProcessGroup, signals},
    spawn::{Launcher, Program, SpawnError, spawn_failed},
    util::{error_chain, lock},
};

/// Delay before the first restart. It doubles with each restart, up to [`MAX_RESTART_DELAY`].
const MIN_RESTART_DELAY: Duration = Duration::from_secs(1);
/// Maximum delay before a restart.
const MAX_RESTART_DELAY: Duration = Duration::from_secs(60);
/// Time that a command must run to reset the delay.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);
/// Time that a restarted command must run before its last failure is no longer reported.
const RECOVERED_AFTER: Duration = Duration::from_secs(15);

#[derive(Debug, Clone)]
pub struct WorkspaceCommand {
    pub children: Children,
    pub launcher: Launcher,
    /// Command to run if the claim names none. Empty if there is none.
    pub fallback: Vec<String>,
    /// Receives the signals that are forwarded to the command.
    pub running: RunningCommand,
    /// Receives the failures of the command.
    pub activity: ActivityMonitor,
    /// Cancelled when the workspace's processes are to end.
    pub processes_ending: CancellationToken,
}

impl WorkspaceCommand {
    /// Starts the command after the claim, and restarts it each time it ends, until
    /// `processes_ending` is cancelled. Does nothing in maintenance mode. Failures never end the
    /// agent.
    pub async fn keep_running(&self) {
        let mut claims = self.launcher.claims().clone();
        let Ok(claim) = claims.wait_for(Option::is_some).await.map(|claim| claim.clone()) else {
            return;
        };
        if claim.as_ref().is_some_and(|claim| claim.maintenance) {
            return;
        }
        let named = claim.map(|claim| claim.command.clone()).filter(|argv| !argv.is_empty());
        let argv = named.unwrap_or_else(|| self.fallback.clone());
        if !argv.is_empty() {
            self.processes_ending.run_until_cancelled(self.restart(&argv)).await;
        }
    }

    async fn restart(&self, argv: &[String]) {
        let mut wait = MIN_RESTART_DELAY;
        let mut failures = 0_u32;
        loop {
            let (started, tail) = (Instant::now(), OutputTail::default());
            let cause = match self.run(argv, &tail).await {
                Ok(ended) => {
                    tracing::warn!(command = argv[0], ?ended, "workspace command ended");
                    CommandFailureCause::Ended(ended)
                }
                Err(error) => {
                    let error = error_chain(&error);
                    tracing::error!(%error, "failed to start workspace command");
                    CommandFailureCause::NotStarted(error)
                }
            };
            if started.elapsed() >= HEALTHY_AFTER {
                (wait, failures) = (MIN_RESTART_DELAY, 0);
            }
            failures = failures.saturating_add(1);
            let (program, output) = (argv[0].clone(), tail.last_lines());
            let failure = CommandFailure { program, cause, failures, output };
            self.activity.set_command_failure(Some(Arc::new(failure)));
            sleep(wait).await;
            wait = (wait * 2).min(MAX_RESTART_DELAY);
        }
    }

    /// Runs the command to its end.
    async fn run(&self, argv: &[String], tail: &OutputTail) -> Result<Option<ExitStatus>, SpawnError> {
        let program = Program { argv: argv.to_vec(), ..Program::default() };
        let mut command = self.launcher.command(&program)?;
        // The command gets its own process group, so that signals to the agent's group do not reach
        // it. Its output goes to the agent's stdout and stderr.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let failed = |error| spawn_failed(&argv[0], error);
        let mut child = self.children.spawn(&mut command).map_err(failed)?;
        let _runs = self.running.begin(child.group.clone());
        let readers = tail.read_from(&mut child).map_err(failed)?;
        tracing::info!(command = argv[0], pid = child.pid.as_raw_nonzero(), "workspace command started");
        if timeout(RECOVERED_AFTER, child.ended.wait_for(Option::is_some)).await.is_err() {
            self.activity.set_command_failure(None);
        }
        let ended = child.ended.wait_for(Option::is_some).await.ok().and_then(|ended| *ended);
        readers.drained().await;
        Ok(ended)
    }
}

/// Forwarded signals. By convention they make servers reload their configuration, reopen their
/// logs, or end.
const FORWARDED_SIGNALS: [Signal; 7] =
    [Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2, Signal::ALARM, Signal::CONT, Signal::WINCH];

/// Process group of the running command. Cheap to clone; all clones share it.
#[derive(Debug, Clone, Default)]
pub struct RunningCommand(Arc<Mutex<Option<ProcessGroup>>>);

/// Clears the running command when dropped.
#[derive(Debug)]
struct RunningCommandGuard(RunningCommand);

impl RunningCommand {
    fn begin(&self, group: ProcessGroup) -> RunningCommandGuard {
        *lock(&self.0) = Some(group);
        RunningCommandGuard(self.clone())
    }

    /// Forwards signals forever. Exactly one task runs this.
    pub async fn forward(&self) -> io::Result<Infallible> {
        let listen = |forwarded: Signal| Ok((forwarded, signal(SignalKind::from_raw(forwarded.as_raw()))?));
        let mut streams: Vec<(Signal, unix::Signal)> =
            FORWARDED_SIGNALS.into_iter().map(listen).collect::<io::Result<_>>()?;
        loop {
            let signal = next(&mut streams).await;
            let passed = lock(&self.0).as_ref().is_some_and(|group| group.signal(signal));
            tracing::info!(
                signal = signals::name(signal.as_raw()),
                forwarded = passed,
                "signal for the workspace command"
            );
        }
    }
}

impl Drop for RunningCommandGuard {
    fn drop(&mut self) {
        *lock(&self.0.0) = None;
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
