//! `podling rm`: archives workspaces and then deletes them. With `--discard`, deletes their files
//! and archives after a confirmation.

use std::{
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    time::SystemTime,
};

use clap::Args;
use podling_proto::{
    control::v1::{DeleteWorkspaceRequest, Workspace, WorkspaceArchive},
    error::{self, Reason},
};
use serde::Serialize;

use super::archives::{self, ArchiveJson, expires};
use crate::{
    backoff::retry_call,
    client::{Client, Context},
    duration::{from_wire, show},
    failure::{CommandFailure, FailureCollector},
    notice, output,
    state_waiter::{self, TargetState},
};

const EXAMPLES: &str = "\
Examples:
  podling rm demo
  podling rm demo other --discard --yes";

/// Delete workspaces after archiving them
///
/// Each workspace is archived first. `podling restore` restores it until the archive expires.
/// --discard deletes the files and all archives for good.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct RmArgs {
    /// Names or ids of the workspaces
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Delete without an archive, and delete existing archives too; asks for confirmation if
    /// standard input is a terminal
    #[arg(long)]
    discard: bool,
    /// With --discard, do not ask for confirmation
    #[arg(short, long, requires = "discard")]
    yes: bool,
    /// Return immediately instead of waiting until the workspaces are deleted
    #[arg(long)]
    no_wait: bool,
}

#[derive(Debug, Serialize)]
struct RemovedJson {
    name: String,
    id: String,
    /// Newest archive of the deleted workspace. Null if it has none, or with `--no-wait`.
    archive: Option<ArchiveJson>,
}

impl RmArgs {
    pub async fn run(self, context: &Context) -> Result<u8, CommandFailure> {
        let client = context.client().await?;
        let mut found = Vec::new();
        for name in &self.names {
            found.push(client.find(name).await?);
        }
        if self.discard && !self.is_discard_confirmed(&found)? {
            return Err(CommandFailure::Refused(
                "the deletion was not confirmed; nothing was deleted".to_owned(),
            ));
        }
        let mut failures = FailureCollector::new(context.json());
        let mut accepted = Vec::new();
        for workspace in found {
            if !self.discard && !context.json() {
                notice!("{}", archive_notice(&workspace));
            }
            accepted.extend(failures.ok_or_collect(self.request_deletion(&client, workspace).await));
        }
        let mut removed = Vec::new();
        for workspace in accepted {
            let Some(deleted) = failures.ok_or_collect(self.wait_until_deleted(&client, workspace).await)
            else {
                continue;
            };
            let (Workspace { name, id, .. }, newest) = deleted;
            if !context.json() {
                output::line(&self.result_line(&name, newest.as_ref()))?;
            }
            removed.push(RemovedJson { name, id, archive: newest.as_ref().map(ArchiveJson::from) });
        }
        if context.json() {
            output::json(&removed)?;
        }
        failures.finish()
    }

    /// Returns whether the user confirms the loss. Asks if stdin is a terminal and `--yes` is
    /// absent. Otherwise `--discard` itself confirms it.
    fn is_discard_confirmed(&self, workspaces: &[Workspace]) -> Result<bool, CommandFailure> {
        if !io::stdin().is_terminal() {
            return Ok(true);
        }
        for workspace in workspaces {
            notice!("{}", discard_warning(workspace));
        }
        if self.yes {
            return Ok(true);
        }
        eprint!("Delete? [y/N] ");
        let asking = || CommandFailure::io("cannot ask for confirmation");
        io::stderr().flush().map_err(asking())?;
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer).map_err(asking())?;
        Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
    }

    async fn request_deletion(
        &self,
        client: &Client,
        workspace: Workspace,
    ) -> Result<Workspace, CommandFailure> {
        let request = DeleteWorkspaceRequest { workspace: workspace.id.clone(), discard: self.discard };
        let deleted = retry_call(async || client.workspaces().delete(request.clone()).await);
        match deleted.await {
            // An earlier attempt deleted the workspace, but its response was not received.
            Err(status) if error::reason(&status) == Some(Reason::WorkspaceNotFound) => Ok(workspace),
            answer => Ok(answer?.workspace.unwrap_or(workspace)),
        }
    }

    /// Waits until the workspace is deleted, unless `--no-wait` is set. Returns its newest archive.
    async fn wait_until_deleted(
        &self,
        client: &Client,
        workspace: Workspace,
    ) -> Result<(Workspace, Option<WorkspaceArchive>), CommandFailure> {
        if self.no_wait {
            return Ok((workspace, None));
        }
        let workspace = state_waiter::wait_for(client, workspace, TargetState::Deleted).await?;
        let left = match archives::list_for_workspace(client, &workspace.id).await {
            Ok(archives) => archives.into_iter().next(),
            // Neither the workspace nor an archive exists any more.
            Err(failure) if failure.reason() == Some(Reason::WorkspaceNotFound) => None,
            Err(failure) => return Err(failure),
        };
        Ok((workspace, left))
    }

    fn result_line(&self, name: &str, archive: Option<&WorkspaceArchive>) -> String {
        match archive {
            _ if self.no_wait => format!("{name} is being deleted"),
            Some(archive) => format!(
                "{name} was deleted; its archive expires {}{}. \
                 Restore the workspace with: podling restore {}",
                expires(archive, SystemTime::now()),
                archives::left_out(archive)
                    .map(|left_out| format!(" ({left_out}, because a zip cannot hold them)"))
                    .unwrap_or_default(),
                archive.key
            ),
            None if self.discard => format!("{name} was deleted"),
            None => format!("{name} was deleted; there was nothing to archive"),
        }
    }
}

/// Renders the notice that the workspace is archived before it is deleted.
fn archive_notice(workspace: &Workspace) -> String {
    let kept = workspace.policy.and_then(|policy| from_wire(policy.keep_archives)).map(show);
    let kept = kept.map_or_else(String::new, |kept| format!("; the archive is retained for {kept}"));
    format!(
        "{}: its files are deleted only after an archive was written, read back and compared{kept}",
        workspace.name
    )
}

/// Renders the warning about what `--discard` deletes and ends.
fn discard_warning(workspace: &Workspace) -> String {
    let usage = workspace.activity.as_ref().and_then(|activity| activity.usage).unwrap_or_default();
    let mut lost = format!("{}: all files and archives are deleted permanently", workspace.name);
    let ended: Vec<_> =
        [(usage.terminals, "terminal", "terminals"), (usage.processes, "process", "processes")]
            .into_iter()
            .filter(|(count, ..)| *count > 0)
            .map(|(count, one, many)| output::counted(count, one, many))
            .collect();
    if !ended.is_empty() {
        lost.push_str(&format!("; {} will be ended", ended.join(" and ")));
    }
    lost
}

#[cfg(test)]
mod tests {
    use podling_proto::agent::v1::{ActivityState, Usage};

    use super::*;

    #[test]
    fn discard_warning_lists_what_is_lost() {
        let mut workspace = Workspace { name: "demo".to_owned(), ..Workspace::default() };
        assert_eq!(discard_warning(&workspace), "demo: all files and archives are deleted permanently");
        let usage = Usage { terminals: 1, processes: 3, ..Usage::default() };
        workspace.activity = Some(ActivityState { usage: Some(usage), ..ActivityState::default() });
        assert_eq!(
            discard_warning(&workspace),
            "demo: all files and archives are deleted permanently; 1 terminal and 3 processes will be ended"
        );
    }

    #[test]
    fn rm_messages_name_archive_and_restore_command() {
        let mut workspace = Workspace { name: "demo".to_owned(), ..Workspace::default() };
        assert!(archive_notice(&workspace).ends_with("read back and compared"));
        let keep_archives = Some(prost_types::Duration { seconds: 2_592_000, nanos: 0 });
        workspace.policy = Some(podling_proto::control::v1::Policy { keep_archives, ..Default::default() });
        assert!(archive_notice(&workspace).ends_with("; the archive is retained for 30d"));

        let rm = RmArgs { names: Vec::new(), discard: false, yes: false, no_wait: false };
        let archive = WorkspaceArchive { key: "workspace-x".to_owned(), ..WorkspaceArchive::default() };
        assert!(rm.result_line("demo", Some(&archive)).ends_with("podling restore workspace-x"));
        assert!(rm.result_line("demo", None).contains("nothing to archive"));
    }
}
