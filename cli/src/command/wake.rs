//! `podling wake`: brings workspaces back, each as far as its state and place in line tell.

use std::time::Instant;

use clap::Args;
use podling_proto::control::v1::{State, WakeWorkspaceRequest, Workspace};

use crate::{
    backoff::patiently,
    client::Client,
    context::Context,
    duration::show,
    failure::Failure,
    journey::{self, Journey, describe},
    many::Many,
    output,
    view::WorkspaceView,
};

/// Wake workspaces, also archived ones, and wait until they are awake
#[derive(Debug, Args)]
pub struct Wake {
    /// Names or ids.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Do not wait until they are awake.
    #[arg(long)]
    no_wait: bool,
}

impl Wake {
    /// Does it.
    pub async fn run(self, context: &Context) -> Result<u8, Failure> {
        let begun = Instant::now();
        let client = context.client().await?;
        let mut many = Many::new(context.json());
        let mut asked = Vec::new();
        for name in &self.names {
            asked.extend(many.take(wake(&client, name).await));
        }
        let mut awake = Vec::new();
        for workspace in asked {
            let outcome = match self.no_wait {
                true => Ok(workspace),
                false => journey::follow(&client, workspace, Journey::Awake).await,
            };
            let Some(workspace) = many.take(outcome) else { continue };
            if !context.json() {
                output::line(&match workspace.state() {
                    State::Awake => format!("{} is awake, after {}", workspace.name, show(begun.elapsed())),
                    _ => describe(&workspace),
                })?;
            }
            awake.push(workspace);
        }
        if context.json() {
            output::json(&awake.iter().map(WorkspaceView::from).collect::<Vec<_>>())?;
        }
        many.finish()
    }
}

/// Asks that it be awake; answers with how it is now.
pub async fn wake(client: &Client, workspace: &str) -> Result<Workspace, Failure> {
    let request = WakeWorkspaceRequest { workspace: workspace.to_owned() };
    let answer = patiently(|| {
        let (mut workspaces, request) = (client.workspaces(), request.clone());
        async move { workspaces.wake(request).await }
    });
    answer.await?.workspace.ok_or_else(Failure::no_workspace)
}
