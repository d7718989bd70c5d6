//! `podling resize`: another share of the owner's room.

use clap::Args;
use podling_control::quantity;
use podling_proto::control::v1::{ResizeWorkspaceRequest, Resources};

use crate::{
    backoff::retry_call, context::Context, failure::CommandFailure, output, resources, view::WorkspaceView,
};

/// Change what a workspace may take while it is awake; what runs in it goes on
///
/// Less is given back at once. For more it waits in line until its owner has that much room, and goes on with what it has.
#[derive(Debug, Args)]
pub struct ResizeArgs {
    /// The workspace's name or id.
    name: String,
    /// Cores: 2, or 500m for half of one.
    #[arg(long, value_parser = cores, required_unless_present = "memory")]
    cpu: Option<u64>,
    /// Memory, such as 512MiB or 2GiB.
    #[arg(long, value_parser = bytes)]
    memory: Option<u64>,
}

impl ResizeArgs {
    /// Does it.
    pub async fn run(self, context: &Context) -> Result<u8, CommandFailure> {
        let client = context.client().await?;
        let resources = Resources {
            cpu_millis: self.cpu.unwrap_or_default(),
            memory_bytes: self.memory.unwrap_or_default(),
        };
        let request = ResizeWorkspaceRequest { workspace: self.name, resources: Some(resources) };
        let answer = retry_call(|| {
            let (mut workspaces, request) = (client.workspaces(), request.clone());
            async move { workspaces.resize(request).await }
        });
        let workspace = answer.await?.workspace.ok_or_else(CommandFailure::no_workspace)?;
        if context.json() {
            output::json(&WorkspaceView::from(&workspace))?;
        } else {
            output::line(&format!("{} {}", workspace.name, resources::describe(&workspace)))?;
        }
        Ok(0)
    }
}

fn cores(text: &str) -> Result<u64, String> {
    quantity::cores(text).ok_or_else(|| format!("write it as {}", quantity::CORES))
}

fn bytes(text: &str) -> Result<u64, String> {
    quantity::bytes(text).ok_or_else(|| format!("write it as {}", quantity::BYTES))
}
