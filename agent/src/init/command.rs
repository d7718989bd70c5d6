//! The workspace's own command (an IDE): started after the claim, started again when it ends, ended with the agent.

use std::{
    os::unix::process::CommandExt,
    process::Stdio,
    time::{Duration, Instant},
};

use tokio::time::sleep;

use crate::{
    child::{Children, Ended},
    spawn::{Launcher, Program, SpawnError, spawn_failed},
};

/// The wait before the first restart; it doubles with each one…
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// …up to this…
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// …and begins anew when the command has run this long.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);

/// Runs the claim's command, else `fallback`, for ever; never returns if there is neither. The agent goes on whatever becomes of it.
pub async fn keep_running(children: Children, launcher: Launcher, fallback: Vec<String>) {
    let mut claims = launcher.claims().clone();
    let Ok(claim) = claims.wait_for(Option::is_some).await.map(|claim| claim.clone()) else {
        return;
    };
    let argv = claim.map(|claim| claim.command.clone()).filter(|argv| !argv.is_empty()).unwrap_or(fallback);
    if argv.is_empty() {
        return;
    }
    let mut wait = FIRST_WAIT;
    loop {
        let started = Instant::now();
        match run(&children, &launcher, &argv).await {
            Ok(ended) => tracing::warn!(command = argv[0], ?ended, "the workspace's command ended"),
            Err(error) => {
                let error = crate::error_chain(&error);
                tracing::error!(%error, "the workspace's command cannot start");
            }
        }
        if started.elapsed() >= HEALTHY_AFTER {
            wait = FIRST_WAIT;
        }
        sleep(wait).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

async fn run(children: &Children, launcher: &Launcher, argv: &[String]) -> Result<Option<Ended>, SpawnError> {
    let program = Program { argv: argv.to_vec(), ..Program::default() };
    let mut command = launcher.command(&program)?;
    // A group of its own, so that a signal for it reaches what it started; what it prints goes where the agent's log goes.
    command.process_group(0).stdin(Stdio::null());
    let mut child = children.spawn(&mut command).map_err(|error| spawn_failed(&argv[0], error))?;
    tracing::info!(command = argv[0], pid = child.pid.as_raw_nonzero(), "the workspace's command runs");
    Ok(child.ended.wait_for(Option::is_some).await.ok().and_then(|ended| *ended))
}
