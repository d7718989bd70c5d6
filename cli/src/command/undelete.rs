//! `podling undelete`: takes deletions back.

use clap::Args;
use podling_proto::control::v1::{UndeleteWorkspaceRequest, Workspace};

use crate::{
    backoff::retry_call,
    client::{Client, Context},
    failure::{CommandFailure, FailureCollector},
    output,
    workspace_json::WorkspaceJson,
    workspace_text::describe,
};

/// Take the deletion of workspaces back
///
/// Possible until the storage is released. The workspace stays asleep until it is woken. Repair files
/// that cannot be archived, then delete the workspace again.
#[derive(Debug, Args)]
pub struct UndeleteArgs {
    /// Names or ids of the workspaces
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

impl UndeleteArgs {
    pub async fn run(self, context: &Context) -> Result<u8, CommandFailure> {
        let client = context.client().await?;
        let mut failures = FailureCollector::new(context.json());
        let mut kept = Vec::new();
        for name in &self.names {
            let Some(workspace) = failures.ok_or_collect(undelete(&client, name).await) else { continue };
            if !context.json() {
                output::line(&format!("{}; it is not deleted", describe(&workspace)))?;
            }
            kept.push(workspace);
        }
        if context.json() {
            output::json(&kept.iter().map(WorkspaceJson::from).collect::<Vec<_>>())?;
        }
        failures.finish()
    }
}

async fn undelete(client: &Client, workspace: &str) -> Result<Workspace, CommandFailure> {
    let request = UndeleteWorkspaceRequest { workspace: workspace.to_owned() };
    let answer = retry_call(async || client.workspaces().undelete(request.clone()).await);
    answer.await?.workspace.ok_or_else(CommandFailure::no_workspace)
}
