//! `podling restore`: restores a workspace from an archive, in place or as a new workspace.

use std::time::Instant;

use clap::Args;
use podling_proto::{
    control::v1::{RestoreArchiveRequest, State, Workspace},
    error::{self, Reason, WireError},
    token,
};
use tonic::Status;

use crate::{
    backoff::retry_call,
    client::{Client, Context},
    duration::show,
    failure::CommandFailure,
    output,
    state_waiter::{self, TargetState},
    workspace_json::WorkspaceJson,
    workspace_text::describe,
};

const REQUEST_ID_BYTES: usize = 12;

const EXAMPLES: &str = "\
Examples:
  podling restore demo
  podling restore workspace-abcdefghijkl-20260102-030405 --as again";

/// Restore a workspace from an archive and wait until it is awake
///
/// Restores archived workspaces and deleted ones. `podling archives` lists the archives.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct RestoreArgs {
    /// Key of an archive; the name or id of a workspace selects its newest archive
    #[arg(value_name = "ARCHIVE|NAME")]
    archive: String,
    /// Create a new workspace of this name from the archive, and leave the old one unchanged
    #[arg(long = "as", value_name = "NEW-NAME")]
    name: Option<String>,
    /// Return immediately instead of waiting until the workspace is awake
    #[arg(long)]
    no_wait: bool,
}

impl RestoreArgs {
    pub async fn run(self, context: &Context) -> Result<u8, CommandFailure> {
        let started_at = Instant::now();
        let client = context.client().await?;
        let mut workspace = self.request_restore(&client).await?;
        if !self.no_wait {
            workspace = state_waiter::wait_for(&client, workspace, TargetState::Awake).await?;
        }
        if context.json() {
            output::json(&WorkspaceJson::from(&workspace))?;
        } else if workspace.state() == State::Awake {
            output::line(&format!(
                "{} is restored and awake, after {}",
                workspace.name,
                show(started_at.elapsed())
            ))?;
            output::line(&format!("  open a terminal in it with: podling attach {}", workspace.name))?;
        } else {
            output::line(&describe(&workspace))?;
        }
        Ok(0)
    }

    async fn request_restore(&self, client: &Client) -> Result<Workspace, CommandFailure> {
        let request = RestoreArchiveRequest {
            archive: self.archive.clone(),
            name: self.name.clone().unwrap_or_default(),
            request_id: token::random(REQUEST_ID_BYTES),
        };
        let mut tries = 0;
        let answer = retry_call(async || {
            tries += 1;
            client.workspace_archives().restore(request.clone()).await
        });
        let answer = answer.await;
        match answer {
            Ok(answer) => answer.workspace.ok_or_else(CommandFailure::no_workspace),
            Err(status) => match (error::reason(&status), error::detail(&status, "id")) {
                // An earlier attempt restored the workspace, but its response was not received.
                (Some(Reason::NotArchived), Some(id)) if tries > 1 => client.find(&id).await,
                (Some(Reason::NameTaken), Some(id)) if self.name.is_none() => {
                    Err(name_taken(&self.archive, client.find(&id).await?))
                }
                _ => Err(status.into()),
            },
        }
    }
}

/// Returns a failure that suggests another name, because another workspace has taken the name of
/// the archived one.
fn name_taken(archive: &str, other: Workspace) -> CommandFailure {
    let message = format!(
        "cannot restore {archive}: another workspace is named {}; \
         restore it under another name: podling restore {archive} --as NEW-NAME",
        other.name
    );
    Status::from(WireError::new(Reason::NameTaken, message).with("id", &other.id)).into()
}
