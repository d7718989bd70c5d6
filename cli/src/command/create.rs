//! `podling create`: creates a workspace and waits until it is awake.

use std::time::Instant;

use clap::Args;
use podling_proto::{
    control::v1::{CreateWorkspaceRequest, Workspace},
    token,
};

use super::run::environment;
use crate::{
    backoff::retry_call,
    context::Context,
    duration,
    failure::CommandFailure,
    output,
    policy::PolicyFlags,
    state_waiter::{self, TargetState},
    view::{WorkspaceJson, state_clause},
};

const REQUEST_ID_BYTES: usize = 12;

const EXAMPLES: &str = "\
The template sets each policy value for which no flag is given.

Example:
  podling create demo --template python --idle-timeout 30m --archive-after 2d";

/// Create a workspace and wait until it is awake
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct CreateArgs {
    /// Name of the workspace: 1 to 63 characters of a-z, 0-9 and "-", beginning with a letter
    name: String,
    /// Template of the workspace [default: the default template of the control plane]
    #[arg(short, long, default_value = "", hide_default_value = true)]
    template: String,
    #[command(flatten)]
    policy: PolicyFlags,
    /// Set an environment variable in the workspace; KEY alone copies the value from your shell
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    env: Vec<String>,
    /// Wake and use the workspace of this name if it already exists, instead of failing
    #[arg(long)]
    reconnect: bool,
    /// Return immediately instead of waiting until the workspace is awake
    #[arg(long)]
    no_wait: bool,
    /// Owner of the workspace (needs a token with the verb `admin`) [default: owner of the token]
    #[arg(long, default_value = "", hide_default_value = true)]
    owner: String,
}

impl CreateArgs {
    pub async fn run(self, context: &Context) -> Result<u8, CommandFailure> {
        let started_at = Instant::now();
        let client = context.client().await?;
        let wait = !self.no_wait;
        let request = self.request();
        let answer = retry_call(|| {
            let (mut workspaces, request) = (client.workspaces(), request.clone());
            async move { workspaces.create(request).await }
        })
        .await?;
        let created = answer.created;
        let workspace = answer.workspace.ok_or_else(CommandFailure::no_workspace)?;
        let workspace = if wait {
            state_waiter::wait_for(&client, workspace, TargetState::Awake).await?
        } else {
            workspace
        };
        if context.json() {
            output::json(&WorkspaceJson::from(&workspace))?;
        } else {
            let made = if created { "" } else { " (existed already)" };
            let took = duration::show(started_at.elapsed());
            let Workspace { name, .. } = &workspace;
            output::line(&format!("{name} {}{made}, after {took}", state_clause(workspace.state())))?;
            output::line(&format!("  open a terminal in it with: podling attach {name}"))?;
        }
        Ok(0)
    }

    fn request(self) -> CreateWorkspaceRequest {
        CreateWorkspaceRequest {
            env: environment(&self.env),
            policy: Some(self.policy.to_wire()),
            name: self.name,
            template: self.template,
            request_id: token::random(REQUEST_ID_BYTES),
            reconnect: self.reconnect,
            owner: self.owner,
        }
    }
}
