//! `podling down`: puts all workspaces to sleep and stops the control plane.

use std::{path::Path, time::Duration};

use clap::Args;
use podling_proto::{
    control::v1::{DownRequest, DownResponse},
    error::{self, Reason},
};
use serde::Serialize;
use tokio::time::{Instant, sleep};
use tonic::{Status, Streaming};

use crate::{
    backoff::is_retryable,
    client::{Client, Context},
    failure::CommandFailure,
    output,
    target::{self, ControlPlaneTarget},
};

/// How long the control plane may take to exit once all workspaces are asleep.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// Interval between checks whether the control plane has exited.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Put all workspaces to sleep and stop the control plane
///
/// The processes of all workspaces end, and their files stay. Fails if a workspace is in use,
/// unless --force is given. `podling up` starts the control plane again.
#[derive(Debug, Args)]
pub struct DownArgs {
    /// Also end the processes of workspaces that are in use
    #[arg(short, long)]
    force: bool,
}

#[derive(Debug, Serialize)]
struct DownSummary {
    ended: u32,
}

impl DownArgs {
    pub async fn run(self, context: &Context) -> Result<u8, CommandFailure> {
        let target = ControlPlaneTarget::find(&context.global)?;
        let client = Client::connect(&target).await?;
        let spinner = output::spinner("putting all workspaces to sleep");
        let outcome = match client.workspaces().down(DownRequest { force: self.force }).await {
            Ok(answer) => drain(answer.into_inner(), &spinner).await,
            Err(status) => Err(status),
        };
        let ended = outcome.map_err(busy_failure)?;
        if let Some(data) = &target.data {
            spinner.set_message("stopping the control plane");
            wait_until_stopped(data).await?;
        }
        spinner.finish_and_clear();
        if context.json() {
            output::json(&DownSummary { ended })?;
        } else {
            let what = if ended == 1 { "1 workspace" } else { &format!("{ended} workspaces") };
            output::line(&format!(
                "stopped the control plane and {what}; all files are kept. Start again with: podling up"
            ))?;
        }
        Ok(0)
    }
}

/// Shows the progress until the stream ends. Returns the number of workspaces that were put to
/// sleep.
async fn drain(mut stream: Streaming<DownResponse>, spinner: &indicatif::ProgressBar) -> Result<u32, Status> {
    let mut total = 0;
    let mut remaining = u32::MAX;
    loop {
        match stream.message().await {
            Ok(Some(progress)) => {
                (total, remaining) = (progress.total, progress.remaining);
                spinner.set_message(format!("waiting until {remaining} of {total} workspaces are asleep"));
            }
            Ok(None) => return Ok(total),
            // The control plane stops when everything is asleep, which closes the connection.
            Err(status) if is_retryable(&status) && remaining == 0 => return Ok(total),
            Err(status) => return Err(status),
        }
    }
}

async fn wait_until_stopped(data: &Path) -> Result<(), CommandFailure> {
    let deadline = Instant::now() + STOP_TIMEOUT;
    while target::running(data)?.is_some() {
        if Instant::now() >= deadline {
            let message = "all workspaces are asleep, but the control plane has not exited; see its output";
            return Err(CommandFailure::Unavailable(message.to_owned()));
        }
        sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

/// Converts a refusal because of workspaces in use to a failure that names them.
fn busy_failure(status: Status) -> CommandFailure {
    let is_busy = error::reason(&status) == Some(Reason::Busy);
    let Some(names) = error::detail(&status, "workspaces").filter(|_| is_busy) else { return status.into() };
    let message = format!(
        "these workspaces are in use, or not connected so that their activity is unknown: {names}; to end \
         their processes: podling down --force"
    );
    let details = status.details().to_vec().into();
    Status::with_details_and_metadata(status.code(), message, details, status.metadata().clone()).into()
}
