//! `podling policy`: shows or changes the policy of a workspace.

use clap::{Args, Subcommand};
use podling_proto::control::v1::{Policy as Wire, SetPolicyRequest, Workspace};
use serde::Serialize;

use crate::{
    backoff::retry_call,
    client::Context,
    failure::CommandFailure,
    output,
    policy::{PolicyFlags, render},
    workspace_json::PolicyJson,
};

const EXAMPLES: &str = "\
Examples:
  podling policy show demo
  podling policy set demo --idle-timeout 1h --max-awake none";

/// Show or change the policy of a workspace
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct PolicyArgs {
    #[command(subcommand)]
    action: PolicyCommand,
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// Show the policy of a workspace
    Show {
        /// Name or id of the workspace
        name: String,
    },
    /// Change the given settings and keep the others; takes effect at once
    Set {
        /// Name or id of the workspace
        name: String,
        #[command(flatten)]
        policy: PolicyFlags,
    },
}

#[derive(Debug, Serialize)]
struct WorkspacePolicyJson<'a> {
    name: &'a str,
    id: &'a str,
    policy: PolicyJson,
}

impl PolicyArgs {
    pub async fn run(self, context: &Context) -> Result<u8, CommandFailure> {
        let workspace = match self.action {
            PolicyCommand::Show { name } => context.client().await?.find(&name).await?,
            PolicyCommand::Set { policy, .. } if policy.is_empty() => {
                let message = "no setting was given; see: podling policy set --help";
                return Err(CommandFailure::Usage(message.to_owned()));
            }
            PolicyCommand::Set { name, policy } => set(context, name, policy.to_wire()).await?,
        };
        let policy = workspace.policy.unwrap_or_default();
        if context.json() {
            let Workspace { name, id, .. } = &workspace;
            output::json(&WorkspacePolicyJson { name, id, policy: PolicyJson::from(&policy) })?;
        } else {
            output::print(&render(&policy))?;
        }
        Ok(0)
    }
}

async fn set(context: &Context, workspace: String, policy: Wire) -> Result<Workspace, CommandFailure> {
    let client = context.client().await?;
    let request = SetPolicyRequest { workspace, policy: Some(policy) };
    let answer = retry_call(async || client.workspaces().set_policy(request.clone()).await);
    answer.await?.workspace.ok_or_else(CommandFailure::no_workspace)
}
