//! `podling create`: creates a workspace and waits until it is awake.

use std::time::Instant;

use clap::Args;
use podling_proto::{
    control::v1::{CreateWorkspaceRequest, Resources, Workspace},
    json::to_json,
};

use super::{
    run::environment,
    settings::{PolicyFlags, parse_bytes, parse_cores},
};
use crate::{
    advice,
    backoff::retry_call,
    client::{Context, request_id},
    duration,
    failure::CommandFailure,
    output,
    state_waiter::{self, TargetState},
    workspace_text::state_clause,
};

const EXAMPLES: &str = "\
The template sets each value for which no flag is given.

Examples:
  podling create demo --template python --idle-timeout 30m --archive-after 2d
  podling create big --cpu 4 --memory 16GiB --storage 100GiB";

/// Create a workspace and wait until it is awake
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct CreateArgs {
    /// Name of the workspace: 1 to 63 characters of a-z, 0-9 and "-", beginning with a letter
    name: String,
    /// Template of the workspace [default: the default template of the control plane]
    #[arg(short, long, default_value = "", hide_default_value = true)]
    template: String,
    /// CPU while awake, in cores, for example 2, or 500m for half a core [default: the template's]
    #[arg(long, value_name = "CORES", value_parser = parse_cores)]
    cpu: Option<u64>,
    /// Memory while awake, for example 512MiB or 2GiB [default: the template's]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    memory: Option<u64>,
    /// Size of the volume, for example 20GiB (Kubernetes backend only) [default: the template's]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    storage: Option<u64>,
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
        let answer = retry_call(async || client.workspaces().create(request.clone()).await).await?;
        let created = answer.created;
        let workspace = answer.workspace.ok_or_else(CommandFailure::no_workspace)?;
        let workspace = if wait {
            state_waiter::wait_for(&client, workspace, TargetState::Awake).await?
        } else {
            workspace
        };
        if context.json() {
            output::json(&to_json(&workspace))?;
        } else {
            let made = if created { "" } else { " (existed already)" };
            let took = duration::show(started_at.elapsed());
            let Workspace { name, .. } = &workspace;
            output::line(&format!("{name} {}{made}, after {took}", state_clause(workspace.state())))?;
            let attach = advice::command(format_args!("attach {name}"));
            output::line(&format!("  open a terminal in it with: {attach}"))?;
        }
        Ok(0)
    }

    fn request(self) -> CreateWorkspaceRequest {
        CreateWorkspaceRequest {
            env: environment(&self.env),
            policy: Some(self.policy.to_wire()),
            name: self.name,
            template: self.template,
            request_id: request_id(),
            reconnect: self.reconnect,
            owner: self.owner,
            resources: Some(Resources {
                cpu_millis: self.cpu.unwrap_or_default(),
                memory_bytes: self.memory.unwrap_or_default(),
            }),
            storage_bytes: self.storage.unwrap_or_default(),
        }
    }
}
