//! `podling archives`: lists archives in the backup store.

use std::time::SystemTime;

use clap::Args;
use podling_proto::control::v1::{ListWorkspaceArchivesRequest, WorkspaceArchive};

use crate::{
    archive::{self, ArchiveJson},
    backoff::retry_call,
    client::{Client, Context},
    failure::CommandFailure,
    notice, output,
};

/// List the archives of workspaces, including deleted ones
///
/// The control plane archives a workspace when it has been asleep for its --archive-after time, and
/// before it is deleted. Every listed archive has been read back and compared with what was read
/// from the workspace. To save files on your own machine, use `podling export`.
#[derive(Debug, Args)]
pub struct ArchivesArgs {
    /// Show only the archives of this workspace (name or id)
    name: Option<String>,
    /// List the archives of all owners (needs a token with the verb `admin`)
    #[arg(short, long, conflicts_with = "name")]
    all_owners: bool,
}

impl ArchivesArgs {
    pub async fn run(self, context: &Context) -> Result<u8, CommandFailure> {
        let client = context.client().await?;
        let archives = match &self.name {
            Some(name) => archive::list_for_workspace(&client, name).await?,
            None => all(&client, self.all_owners).await?,
        };
        if context.json() {
            output::json(&archives.iter().map(ArchiveJson::from).collect::<Vec<_>>())?;
        } else if archives.is_empty() {
            let message =
                "There are no archives. A workspace is archived after a long sleep, and before it is deleted";
            notice!("{message}.");
        } else {
            output::print(&archive::table(&archives, SystemTime::now(), self.all_owners))?;
        }
        Ok(0)
    }
}

async fn all(client: &Client, all_owners: bool) -> Result<Vec<WorkspaceArchive>, CommandFailure> {
    let request = ListWorkspaceArchivesRequest { workspace: String::new(), all_owners };
    let answer = retry_call(async || client.workspace_archives().list(request.clone()).await);
    Ok(answer.await?.archives)
}
