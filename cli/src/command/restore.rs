//! `podling restore`: brings a workspace back from a backup, itself or as a new one.

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
    client::Client,
    context::Context,
    duration::show,
    failure::CommandFailure,
    output,
    state_waiter::{self, TargetState, describe},
    view::WorkspaceView,
};

/// Random bytes of a request id.
const REQUEST_ID_BYTES: usize = 12;

/// Bring a workspace back from a backup, also a deleted one, and wait until it is awake
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// A backup's key (see `podling archives`), or a workspace's name or id: its newest.
    #[arg(value_name = "BACKUP|NAME")]
    backup: String,
    /// Make a new workspace of this name that begins with what the backup holds, and leave the old one as it is.
    #[arg(long = "as", value_name = "NEW-NAME")]
    name: Option<String>,
    /// Do not wait until it is awake.
    #[arg(long)]
    no_wait: bool,
}

impl RestoreArgs {
    /// Does it.
    pub async fn run(self, context: &Context) -> Result<u8, CommandFailure> {
        let started_at = Instant::now();
        let client = context.client().await?;
        let mut workspace = self.request_restore(&client).await?;
        if !self.no_wait {
            workspace = state_waiter::wait_for(&client, workspace, TargetState::Awake).await?;
        }
        if context.json() {
            output::json(&WorkspaceView::from(&workspace))?;
        } else if workspace.state() == State::Awake {
            output::line(&format!(
                "{} is restored and awake, after {}",
                workspace.name,
                show(started_at.elapsed())
            ))?;
            output::line(&format!("  open a terminal in it:  podling attach {}", workspace.name))?;
        } else {
            output::line(&describe(&workspace))?;
        }
        Ok(0)
    }

    async fn request_restore(&self, client: &Client) -> Result<Workspace, CommandFailure> {
        let request = RestoreArchiveRequest {
            archive: self.backup.clone(),
            name: self.name.clone().unwrap_or_default(),
            request_id: token::random(REQUEST_ID_BYTES),
        };
        let mut tries = 0;
        let answer = retry_call(|| {
            tries += 1;
            let (mut backups, request) = (client.workspace_archives(), request.clone());
            async move { backups.restore(request).await }
        });
        let answer = answer.await;
        match answer {
            Ok(answer) => answer.workspace.ok_or_else(CommandFailure::no_workspace),
            Err(status) => match (error::reason(&status), error::detail(&status, "id")) {
                // An earlier try got through before its link broke.
                (Some(Reason::NotArchived), Some(id)) if tries > 1 => client.find(&id).await,
                (Some(Reason::NameTaken), Some(id)) if self.name.is_none() => {
                    Err(name_taken(&self.backup, client.find(&id).await?))
                }
                _ => Err(status.into()),
            },
        }
    }
}

/// Somebody has its name meanwhile: it can come back beside them.
fn name_taken(backup: &str, other: Workspace) -> CommandFailure {
    let words = format!(
        "you have another workspace {} now; to restore beside it: podling restore {backup} --as NEW-NAME",
        other.name
    );
    Status::from(WireError::new(Reason::NameTaken, words).with("id", &other.id)).into()
}
