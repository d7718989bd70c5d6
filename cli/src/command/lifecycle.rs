//! `podling sleep`, `podling wake`, `podling rm` and `podling undelete`: change the desired state of
//! workspaces. A failure for one workspace does not stop the others.

use std::{
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    time::{Instant, SystemTime},
};

use clap::Args;
use podling_proto::{
    control::v1::{
        AgentConnection, DeleteWorkspaceRequest, SleepWorkspaceRequest, State, UndeleteWorkspaceRequest,
        WakeWorkspaceRequest, Workspace, WorkspaceArchive,
    },
    error::{self, Reason, WireError},
    json::to_json,
};
use serde_json::{Value, json};
use tonic::Status;

use super::archives::{self, expires};
use crate::{
    advice,
    backoff::retry_call,
    client::{Client, Context},
    duration::{from_wire, show},
    failure::{self, CommandFailure},
    notice,
    output::{self, plain},
    state_waiter::{self, TargetState},
    workspace_text::{describe, state_clause},
};

/// Number of signals that a refusal lists. Of further signals only the number is shown.
const NAMED: usize = 3;

/// Put workspaces to sleep
///
/// The processes of a workspace end. Its files and the output of its terminals stay. Fails for a
/// workspace that is in use, unless --force is given.
#[derive(Debug, Args)]
pub struct SleepArgs {
    /// Names or ids of the workspaces
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Also end the processes of workspaces that are in use
    #[arg(short, long)]
    force: bool,
    /// Return immediately instead of waiting until the workspaces are asleep
    #[arg(long)]
    no_wait: bool,
}

impl SleepArgs {
    pub async fn run(self, context: &Context) -> Result<u8, CommandFailure> {
        let target = (!self.no_wait).then_some(TargetState::Asleep);
        let request = async |client: &Client, name: &str| self.request_sleep(client, name).await;
        change_each(&self.names, context, target, request, |workspace| {
            format!("{} {}", workspace.name, state_clause(workspace.state()))
        })
        .await
    }

    async fn request_sleep(&self, client: &Client, name: &str) -> Result<Workspace, CommandFailure> {
        let request = SleepWorkspaceRequest { workspace: name.to_owned(), force: self.force };
        let answer = retry_call(async || client.workspaces().sleep(request.clone()).await);
        match answer.await {
            Ok(answer) => answer.workspace.ok_or_else(CommandFailure::no_workspace),
            Err(status) if error::reason(&status) == Some(Reason::Busy) => {
                // The activity only improves the message, so a failure to read it is ignored.
                let busy = client.find(name).await.ok();
                Err(busy.map_or_else(|| status.into(), |workspace| busy_failure(&workspace)))
            }
            Err(status) => Err(status.into()),
        }
    }
}

/// Returns a failure that lists what keeps the workspace in use, and the command that puts the
/// workspace to sleep nevertheless.
fn busy_failure(workspace: &Workspace) -> CommandFailure {
    let name = &workspace.name;
    let evidence = workspace.activity.as_ref().map(|activity| activity.evidence.as_slice());
    let holds: Vec<_> = evidence.unwrap_or_default().iter().filter(|evidence| !evidence.capped).collect();
    let mut why = holds.iter().take(NAMED).map(|e| plain(&e.detail)).collect::<Vec<_>>().join("; ");
    if holds.len() > NAMED {
        why.push_str(&format!("; and {} more", holds.len() - NAMED));
    }
    let message = match workspace.connection() {
        AgentConnection::Connected if why.is_empty() => format!("{name} is in use"),
        AgentConnection::Connected => format!("{name} is in use: {why}"),
        AgentConnection::Unknown | AgentConnection::Unspecified => {
            format!("the agent of {name} is unreachable, so {name} may be in use")
        }
    };
    let sleep = advice::command(format_args!("sleep {name} --force"));
    let message = format!("{message}; to end its processes: {sleep}");
    Status::from(WireError::new(Reason::Busy, message).with("workspaces", name)).into()
}

/// Wake workspaces and wait until they are awake
///
/// An archived workspace is restored first. If the owner's quota or the total capacity is
/// exhausted, the workspace waits in the admission queue.
#[derive(Debug, Args)]
pub struct WakeArgs {
    /// Names or ids of the workspaces
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Return immediately instead of waiting until the workspaces are awake
    #[arg(long)]
    no_wait: bool,
}

impl WakeArgs {
    pub async fn run(self, context: &Context) -> Result<u8, CommandFailure> {
        let started_at = Instant::now();
        let target = (!self.no_wait).then_some(TargetState::Awake);
        change_each(&self.names, context, target, wake, |workspace| match workspace.state() {
            State::Awake => format!("{} is awake, after {}", workspace.name, show(started_at.elapsed())),
            _ => describe(workspace),
        })
        .await
    }
}

/// Requests a wake of the workspace. Returns the workspace as it is now, without waiting.
pub async fn wake(client: &Client, workspace: &str) -> Result<Workspace, CommandFailure> {
    let request = WakeWorkspaceRequest { workspace: workspace.to_owned() };
    let answer = retry_call(async || client.workspaces().wake(request.clone()).await);
    answer.await?.workspace.ok_or_else(CommandFailure::no_workspace)
}

/// Take the deletion of workspaces back
///
/// Possible until the storage is released. The workspace stays asleep until it is woken. Repair files
/// that cannot be archived, then delete the workspace again.
#[derive(Debug, Args)]
pub struct UndeleteArgs {
    /// Names or ids of the workspaces
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

impl UndeleteArgs {
    pub async fn run(self, context: &Context) -> Result<u8, CommandFailure> {
        change_each(&self.names, context, None, undelete, |workspace| {
            format!("{}; it is not deleted", describe(workspace))
        })
        .await
    }
}

async fn undelete(client: &Client, workspace: &str) -> Result<Workspace, CommandFailure> {
    let request = UndeleteWorkspaceRequest { workspace: workspace.to_owned() };
    let answer = retry_call(async || client.workspaces().undelete(request.clone()).await);
    answer.await?.workspace.ok_or_else(CommandFailure::no_workspace)
}

/// Requests a change of each workspace, then waits until each reaches the target, and reports it.
/// Returns the exit code.
async fn change_each(
    names: &[String],
    context: &Context,
    target: Option<TargetState>,
    request: impl AsyncFn(&Client, &str) -> Result<Workspace, CommandFailure>,
    report: impl Fn(&Workspace) -> String,
) -> Result<u8, CommandFailure> {
    let client = context.client().await?;
    let request =
        async |name: &String| request(&client, name).await.map_err(|failure| failure.about(Some(name)));
    let finish = async |workspace| match target {
        Some(target) => state_waiter::wait_for(&client, workspace, target).await,
        None => Ok(workspace),
    };
    for_each(names, context.json(), request, finish, report, to_json).await
}

/// Sends a request for each target. Then waits for each accepted request and reports its result. A
/// failure of one target does not stop the others. Returns the exit code.
async fn for_each<T, A, F>(
    targets: impl IntoIterator<Item = T>,
    json: bool,
    request: impl AsyncFn(T) -> Result<A, CommandFailure>,
    finish: impl AsyncFn(A) -> Result<F, CommandFailure>,
    report: impl Fn(&F) -> String,
    to_json: impl Fn(&F) -> Value,
) -> Result<u8, CommandFailure> {
    let mut last = None;
    // The caller reports the last failure.
    let mut collect = |failure| {
        if let Some(earlier) = last.replace(failure) {
            output::report(&earlier, json);
        }
    };
    let mut accepted = Vec::new();
    for target in targets {
        match request(target).await {
            Ok(requested) => accepted.push(requested),
            Err(failure) => collect(failure),
        }
    }
    let mut finished = Vec::new();
    for target in accepted {
        match finish(target).await {
            Ok(done) if json => finished.push(to_json(&done)),
            Ok(done) => output::line(&report(&done))?,
            Err(failure) => collect(failure),
        }
    }
    if json {
        output::json(&finished)?;
    }
    last.map_or(Ok(failure::OK), Err)
}

const RM_EXAMPLES: &str = "\
Examples:
  podling rm demo
  podling rm demo other --discard --yes";

/// Delete workspaces after archiving them
///
/// Each workspace is archived first. `podling restore` restores it until the archive expires.
/// --discard deletes the files and all archives for good.
#[derive(Debug, Args)]
#[command(after_help = RM_EXAMPLES)]
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
        let request = async |workspace| {
            if !self.discard && !context.json() {
                notice!("{}", archive_notice(&workspace));
            }
            self.request_deletion(&client, workspace).await
        };
        let finish = async |workspace| self.wait_until_deleted(&client, workspace).await;
        let report = |(workspace, newest): &(Workspace, Option<WorkspaceArchive>)| {
            self.result_line(&workspace.name, newest.as_ref())
        };
        for_each(found, context.json(), request, finish, report, |(workspace, newest)| {
            // The archive is null if the workspace has none, or with --no-wait.
            json!({ "name": workspace.name, "id": workspace.id, "archive": newest.as_ref().map(to_json) })
        })
        .await
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
                "{name} was deleted; its archive expires {}{}. Restore the workspace with: {}",
                expires(archive, SystemTime::now()),
                archives::left_out(archive)
                    .map(|left_out| format!(" ({left_out}, because a zip cannot hold them)"))
                    .unwrap_or_default(),
                advice::command(format_args!("restore {}", archive.key))
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
            .map(|(count, one, many)| output::counted(count.into(), one, many))
            .collect();
    if !ended.is_empty() {
        lost.push_str(&format!("; {} will be ended", ended.join(" and ")));
    }
    lost
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use podling_proto::agent::v1::{ActivityState, Evidence, Usage};

    use super::*;
    use crate::advice::tests::repeating;

    #[test]
    fn sleep_refusal_lists_activity_and_force() {
        let evidence =
            |detail: &str, capped| Evidence { detail: detail.to_owned(), capped, ..Evidence::default() };
        let evidence =
            ["make -j8", "vim", "a lease", "top", "tail"].map(|detail| evidence(detail, detail == "vim"));
        let activity = ActivityState { evidence: evidence.to_vec(), ..ActivityState::default() };
        let mut workspace = Workspace {
            name: "demo".to_owned(),
            connection: AgentConnection::Connected.into(),
            activity: Some(activity),
            ..Workspace::default()
        };
        let failure = busy_failure(&workspace);
        assert_eq!(failure.exit_code(), failure::REFUSED);
        assert_eq!(failure.reason(), Some(Reason::Busy));
        let message = failure.describe();
        assert!(message.contains("in use: make -j8; a lease; top; and 1 more; to end"), "{message}");
        assert!(message.contains("podling sleep demo --force"), "{message}");
        workspace.set_connection(AgentConnection::Unknown);
        assert!(busy_failure(&workspace).describe().contains("is unreachable"));
    }

    #[test]
    fn evidence_that_looks_like_a_command_is_unchanged() {
        let detail = "build: podling (pid 7) uses 90 %; `podling ls`".to_owned();
        let evidence = vec![Evidence { detail, ..Evidence::default() }];
        let workspace = Workspace {
            name: "demo".to_owned(),
            connection: AgentConnection::Connected.into(),
            activity: Some(ActivityState { evidence, ..ActivityState::default() }),
            ..Workspace::default()
        };
        assert_eq!(
            repeating(" --data /d", || busy_failure(&workspace).describe()),
            "demo is in use: build: podling (pid 7) uses 90 %; `podling ls`; \
             to end its processes: podling --data /d sleep demo --force"
        );
    }

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

    #[tokio::test]
    async fn failure_of_one_target_does_not_stop_others() {
        let change = async |refused: u32| {
            let finished = RefCell::new(Vec::new());
            let request = async |target| match target == refused {
                true => Err(CommandFailure::Refused("no".to_owned())),
                false => Ok(target),
            };
            let finish = async |target| {
                finished.borrow_mut().push(target);
                Ok(target)
            };
            let to_json = |target: &u32| Value::from(*target);
            let outcome = for_each([1, 2, 3], true, request, finish, u32::to_string, to_json).await;
            (outcome.map_err(|failure| failure.exit_code()), finished.into_inner())
        };
        assert_eq!(change(2).await, (Err(failure::REFUSED), vec![1, 3]));
        assert_eq!(change(4).await, (Ok(failure::OK), vec![1, 2, 3]));
    }
}
