//! The workspace's own command (an IDE): started after the claim, started again when it ends, ended with the agent.

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

/// The wait before the first restart; it doubles with each one…
const MIN_RESTART_DELAY: Duration = Duration::from_secs(1);
/// …up to this…
const MAX_RESTART_DELAY: Duration = Duration::from_secs(60);
/// …and begins anew when the command has run this long.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);

/// The workspace's own command.
#[derive(Debug, Clone)]
pub struct WorkspaceCommand {
    /// Where it is started.
    pub children: Children,
    /// With what.
    pub launcher: Launcher,
    /// Unless the claim names one; empty: none.
    pub fallback: Vec<String>,
    /// Who it is that runs, for signals that are its own.
    pub running: RunningCommand,
    /// Cancelled when it is not wanted any more.
    pub ending: CancellationToken,
}

impl WorkspaceCommand {
    /// Starts it after the claim (unless that is for maintenance), and again whenever it ends, until it is not wanted. The agent goes on whatever becomes of it.
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
            self.ending.run_until_cancelled(self.restart(&argv)).await;
        }
    }

    async fn restart(&self, argv: &[String]) {
        let mut wait = MIN_RESTART_DELAY;
        loop {
            let started = Instant::now();
            match self.run(argv).await {
                Ok(ended) => tracing::warn!(command = argv[0], ?ended, "the workspace's command ended"),
                Err(error) => {
                    let error = crate::error_chain(&error);
                    tracing::error!(%error, "the workspace's command cannot start");
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
        // A group of its own, so that no signal for the agent's is for it; what it prints goes where the agent's log goes.
        command.process_group(0).stdin(Stdio::null());
        let mut child = self.children.spawn(&mut command).map_err(|error| spawn_failed(&argv[0], error))?;
        let _runs = self.running.begin(child.group.clone());
        tracing::info!(command = argv[0], pid = child.pid.as_raw_nonzero(), "the workspace's command runs");
        Ok(child.ended.wait_for(Option::is_some).await.ok().and_then(|ended| *ended))
    }
}
