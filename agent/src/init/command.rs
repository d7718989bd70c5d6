//! Runs the workspace's own command, such as an IDE. The command is started after the claim,
//! restarted when it ends, and ended with the agent.

use std::{
    os::unix::process::CommandExt,
    process::Stdio,
    time::{Duration, Instant},
};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::forward::RunningCommand;
use crate::{
    child::{Children, ExitStatus},
    spawn::{Launcher, Program, SpawnError, spawn_failed},
};

/// Delay before the first restart. It doubles with each restart, up to [`MAX_RESTART_DELAY`].
const MIN_RESTART_DELAY: Duration = Duration::from_secs(1);
/// Maximum delay before a restart.
const MAX_RESTART_DELAY: Duration = Duration::from_secs(60);
/// Time that a command must run to reset the delay.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);

#[derive(Debug, Clone)]
pub struct WorkspaceCommand {
    pub children: Children,
    pub launcher: Launcher,
    /// Command to run if the claim names none. Empty if there is none.
    pub fallback: Vec<String>,
    /// Receives the signals that are forwarded to the command.
    pub running: RunningCommand,
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
        loop {
            let started = Instant::now();
            match self.run(argv).await {
                Ok(ended) => tracing::warn!(command = argv[0], ?ended, "workspace command ended"),
                Err(error) => {
                    let error = crate::error_chain(&error);
                    tracing::error!(%error, "failed to start workspace command");
                }
            }
            if started.elapsed() >= HEALTHY_AFTER {
                wait = MIN_RESTART_DELAY;
            }
            sleep(wait).await;
            wait = (wait * 2).min(MAX_RESTART_DELAY);
        }
    }

    async fn run(&self, argv: &[String]) -> Result<Option<ExitStatus>, SpawnError> {
        let program = Program { argv: argv.to_vec(), ..Program::default() };
        let mut command = self.launcher.command(&program)?;
        // The command gets its own process group, so that signals to the agent's group do not reach
        // it. Its output goes to the agent's stdout and stderr.
        command.process_group(0).stdin(Stdio::null());
        let mut child = self.children.spawn(&mut command).map_err(|error| spawn_failed(&argv[0], error))?;
        let _runs = self.running.begin(child.group.clone());
        tracing::info!(command = argv[0], pid = child.pid.as_raw_nonzero(), "workspace command started");
        Ok(child.ended.wait_for(Option::is_some).await.ok().and_then(|ended| *ended))
    }
}
