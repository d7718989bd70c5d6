//! Archives in the backup store: `podling archives` lists them, and `podling restore` restores a
//! workspace from one, in place or as a new workspace.

use std::time::{Instant, SystemTime};

use clap::Args;
use podling_proto::{
    control::v1::{ListWorkspaceArchivesRequest, RestoreArchiveRequest, State, Workspace, WorkspaceArchive},
    error::{self, Reason, WireError},
    json::to_json,
};
use tonic::Status;

use crate::{
    advice,
    backoff::retry_call,
    client::{Client, Context, request_id},
    duration::{ago, left, show, when},
    failure::CommandFailure,
    notice,
    output::{self, Tone},
    state_waiter::{self, TargetState},
    workspace_text::describe,
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
            Some(name) => list_for_workspace(&client, name).await?,
            None => list(&client, String::new(), self.all_owners).await?,
        };
        if context.json() {
            output::json(&archives.iter().map(to_json).collect::<Vec<_>>())?;
        } else if archives.is_empty() {
            let message =
                "There are no archives. A workspace is archived after a long sleep, and before it is deleted";
            notice!("{message}.");
        } else {
            output::print(&table(&archives, SystemTime::now(), self.all_owners))?;
        }
        Ok(0)
    }
}

/// Lists archives, newest first: those of a workspace, or of all workspaces if its name is empty.
async fn list(client: &Client, workspace: String, all_owners: bool) -> Result<Vec<WorkspaceArchive>, Status> {
    let request = ListWorkspaceArchivesRequest { workspace, all_owners };
    let answer = retry_call(async || client.workspace_archives().list(request.clone()).await);
    Ok(answer.await?.archives)
}

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
            output::json(&to_json(&workspace))?;
        } else if workspace.state() == State::Awake {
            output::line(&format!(
                "{} is restored and awake, after {}",
                workspace.name,
                show(started_at.elapsed())
            ))?;
            let attach = advice::command(format_args!("attach {}", workspace.name));
            output::line(&format!("  open a terminal in it with: {attach}"))?;
        } else {
            output::line(&describe(&workspace))?;
        }
        Ok(0)
    }

    async fn request_restore(&self, client: &Client) -> Result<Workspace, CommandFailure> {
        let request = RestoreArchiveRequest {
            archive: self.archive.clone(),
            name: self.name.clone().unwrap_or_default(),
            request_id: request_id(),
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
    let restore = advice::command(format_args!("restore {archive} --as NEW-NAME"));
    let message = format!(
        "cannot restore {archive}: another workspace is named {}; \
         restore it under another name: {restore}",
        other.name
    );
    Status::from(WireError::new(Reason::NameTaken, message).with("id", &other.id)).into()
}

/// Lists the archives of a workspace, newest first. `workspace` is its name or id. Returns an empty
/// list if it has no archive.
pub async fn list_for_workspace(
    client: &Client,
    workspace: &str,
) -> Result<Vec<WorkspaceArchive>, CommandFailure> {
    match list(client, workspace.to_owned(), false).await {
        Ok(archives) => Ok(archives),
        Err(status) if error::reason(&status) == Some(Reason::ArchiveNotFound) => Ok(Vec::new()),
        Err(status) => Err(status.into()),
    }
}

/// Renders a table with one row per archive. `owners` adds the column OWNER.
pub fn table(archives: &[WorkspaceArchive], now: SystemTime, owners: bool) -> String {
    let mut head = vec!["WORKSPACE", "KEY", "MADE", "SIZE", "ENTRIES", "EXPIRES"];
    if owners {
        head.push("OWNER");
    }
    head.push("");
    let row = |archive: &WorkspaceArchive| {
        let mut row = vec![
            (archive.workspace_name.clone(), Some(Tone::Strong)),
            (archive.key.clone(), None),
            (ago(archive.created, now), None),
            (size(archive), None),
            (archive.entries.to_string(), None),
            (expires(archive, now), None),
        ];
        if owners {
            row.push((archive.owner.clone(), None));
        }
        let notes = [
            archive.deleted.then(|| "deleted".to_owned()),
            archive.only_copy.then(|| "only copy".to_owned()),
            left_out(archive),
        ];
        let notes: Vec<_> = notes.into_iter().flatten().collect();
        row.push((notes.join(", "), Some(Tone::Notice)));
        row
    };
    output::table(&head, &archives.iter().map(row).collect::<Vec<_>>())
}

/// Renders the number of entries that a zip cannot hold: "2 sockets or devices left out". `None` if
/// there are none.
pub fn left_out(archive: &WorkspaceArchive) -> Option<String> {
    let counted = output::counted(archive.left_out, "socket or device", "sockets or devices");
    (archive.left_out > 0).then(|| format!("{counted} left out"))
}

/// Returns the size of the zip in the backup store, for example `88.00 MiB`.
pub fn size(archive: &WorkspaceArchive) -> String {
    indicatif::HumanBytes(archive.archive_bytes).to_string()
}

/// Returns the time until the archive is removed, for example `in 29d 21h`.
pub fn expires(archive: &WorkspaceArchive, now: SystemTime) -> String {
    left(archive.expires, now).map_or_else(|| "-".to_owned(), when)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn archive_row_shows_age_size_and_notes() {
        let time = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let archive = WorkspaceArchive {
            key: "workspace-abcdefghijkl-20260102-030405".to_owned(),
            workspace_name: "demo".to_owned(),
            created: Some(time(0).into()),
            expires: Some(time(2_592_000).into()),
            entries: 14_612,
            archive_bytes: 92_274_688,
            only_copy: true,
            deleted: true,
            ..WorkspaceArchive::default()
        };
        let text = table(std::slice::from_ref(&archive), time(7_260), false);
        assert_eq!(
            text.lines().nth(1),
            Some(
                "demo       workspace-abcdefghijkl-20260102-030405  2h 1m ago  88.00 MiB  14612    \
                 in 29d 21h  deleted, only copy"
            )
        );
        assert!(text.lines().next().is_some_and(|head| head.contains("EXPIRES")), "{text}");
        let archive = WorkspaceArchive { left_out: 2, ..archive };
        let text = table(&[archive], time(7_260), false);
        assert!(text.ends_with("deleted, only copy, 2 sockets or devices left out\n"), "{text}");
        assert_eq!(left_out(&WorkspaceArchive::default()), None);
    }
}
