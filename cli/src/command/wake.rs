//! `podling wake`: wakes workspaces, and shows their state and queue position until they are awake.

use std::time::Instant;

use clap::Args;
use podling_proto::control::v1::{State, WakeWorkspaceRequest, Workspace};

use crate::{
    backoff::retry_call,
    client::{Client, Context},
    duration::show,
    failure::{CommandFailure, FailureCollector},
    output,
    state_waiter::{self, TargetState},
    workspace_json::WorkspaceJson,
    workspace_text::describe,
};

/// Wake workspaces and wait until they are awake
///
/// An archived workspace is restored first. If the owner's quota or the total capacity is
/// exhausted, the workspace waits in the admission queue.
#[derive(Debug, Args)]
pub struct WakeArgs {
    /// Names or ids of the workspaces
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Return immediately instead of waiting until the workspaces are awake
    #[arg(long)]
    no_wait: bool,
}

impl WakeArgs {
    pub async fn run(self, context: &Context) -> Result<u8, CommandFailure> {
        let started_at = Instant::now();
        let client = context.client().await?;
        let mut failures = FailureCollector::new(context.json());
        let mut accepted = Vec::new();
        for name in &self.names {
            let requested = wake(&client, name).await;
            let requested = requested.map_err(|failure| failure.about(Some(name)));
            accepted.extend(failures.ok_or_collect(requested));
        }
        let mut woken = Vec::new();
        for workspace in accepted {
            let outcome = match self.no_wait {
                true => Ok(workspace),
                false => state_waiter::wait_for(&client, workspace, TargetState::Awake).await,
            };
            let Some(workspace) = failures.ok_or_collect(outcome) else { continue };
            if !context.json() {
                output::line(&match workspace.state() {
                    State::Awake => {
                        format!("{} is awake, after {}", workspace.name, show(started_at.elapsed()))
                    }
                    _ => describe(&workspace),
                })?;
            }
            woken.push(workspace);
        }
        if context.json() {
            output::json(&woken.iter().map(WorkspaceJson::from).collect::<Vec<_>>())?;
        }
        failures.finish()
    }
}

/// Requests a wake of the workspace. Returns the workspace as it is now, without waiting.
pub async fn wake(client: &Client, workspace: &str) -> Result<Workspace, CommandFailure> {
    let request = WakeWorkspaceRequest { workspace: workspace.to_owned() };
    let answer = retry_call(async || client.workspaces().wake(request.clone()).await);
    answer.await?.workspace.ok_or_else(CommandFailure::no_workspace)
}
