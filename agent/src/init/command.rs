//! Runs the workspace's own command, such as an IDE. The command is started after the claim,
//! restarted when it ends, and ended with the agent. Its failures are reported with the activity.

use std::{
    os::unix::process::CommandExt,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{forward::RunningCommand, output_tail::OutputTail};
use crate::{
    activity::{
        ActivityMonitor,
        notices::{CommandFailure, CommandFailureCause},
    },
    child::{Children, ExitStatus},
    spawn::{Launcher, Program, SpawnError, spawn_failed},
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
                    let error = crate::error_chain(&error);
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
