//! `podling resize`: changes the CPU and memory of a workspace.

use clap::Args;
use podling_control::quantity;
use podling_proto::control::v1::{ResizeWorkspaceRequest, Resources};

use crate::{
    backoff::retry_call, client::Context, failure::CommandFailure, output, workspace_json::WorkspaceJson,
    workspace_text::describe_resources,
};

const EXAMPLES: &str = "\
Example:
  podling resize demo --cpu 2 --memory 4GiB";

/// Change the CPU and memory of a workspace
///
/// Running programs continue. A reduction takes effect at once. An increase beyond the owner's
/// quota waits in the admission queue, and the workspace keeps its present resources meanwhile.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ResizeArgs {
    /// Name or id of the workspace
    name: String,
    /// CPU in cores, for example 2, or 500m for half a core [default: unchanged]
    #[arg(long, value_parser = parse_cores, required_unless_present = "memory")]
    cpu: Option<u64>,
    /// Memory, for example 512MiB or 2GiB [default: unchanged]
    #[arg(long, value_parser = parse_bytes)]
    memory: Option<u64>,
}

impl ResizeArgs {
    pub async fn run(self, context: &Context) -> Result<u8, CommandFailure> {
        let client = context.client().await?;
        let resources = Resources {
            cpu_millis: self.cpu.unwrap_or_default(),
            memory_bytes: self.memory.unwrap_or_default(),
        };
        let request = ResizeWorkspaceRequest { workspace: self.name, resources: Some(resources) };
        let answer = retry_call(async || client.workspaces().resize(request.clone()).await);
        let workspace = answer.await?.workspace.ok_or_else(CommandFailure::no_workspace)?;
        if context.json() {
            output::json(&WorkspaceJson::from(&workspace))?;
        } else {
            output::line(&format!("{} {}", workspace.name, describe_resources(&workspace)))?;
        }
        Ok(0)
    }
}

/// Parses the value of a flag `--cpu` into thousandths of a core.
pub fn parse_cores(text: &str) -> Result<u64, String> {
    quantity::cores(text).ok_or_else(|| format!("expected {}", quantity::CORES))
}

/// Parses the value of a flag `--memory` or `--storage` into bytes.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    quantity::bytes(text).ok_or_else(|| format!("expected {}", quantity::BYTES))
}
