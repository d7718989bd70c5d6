//! `podling sleep`, `podling wake` and `podling undelete`: change the desired state of workspaces.

use std::time::Instant;

use clap::Args;
use podling_proto::{
    control::v1::{
        AgentConnection, SleepWorkspaceRequest, State, UndeleteWorkspaceRequest, WakeWorkspaceRequest,
        Workspace,
    },
    error::{self, Reason, WireError},
};
use tonic::Status;

use crate::{
    backoff::retry_call,
    client::{Client, Context},
    duration::show,
    failure::{CommandFailure, FailureCollector},
    output::{self, plain},
    state_waiter::{self, TargetState},
    workspace_json::WorkspaceJson,
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
        for_each(&self.names, context, target, request, |workspace| {
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
    let message = format!("{message}; to end its processes: podling sleep {name} --force");
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
        for_each(&self.names, context, target, wake, |workspace| match workspace.state() {
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
        for_each(&self.names, context, None, undelete, |workspace| {
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

/// Requests a change of each workspace, then waits until each reaches the target, and reports it. A
/// failure of one workspace does not stop the others. Returns the exit code.
async fn for_each(
    names: &[String],
    context: &Context,
    target: Option<TargetState>,
    request: impl AsyncFn(&Client, &str) -> Result<Workspace, CommandFailure>,
    report: impl Fn(&Workspace) -> String,
) -> Result<u8, CommandFailure> {
    let client = context.client().await?;
    let mut failures = FailureCollector::new(context.json());
    let mut accepted = Vec::new();
    for name in names {
        let requested = request(&client, name).await.map_err(|failure| failure.about(Some(name)));
        accepted.extend(failures.ok_or_collect(requested));
    }
    let mut changed = Vec::new();
    for workspace in accepted {
        let outcome = match target {
            Some(target) => state_waiter::wait_for(&client, workspace, target).await,
            None => Ok(workspace),
        };
        let Some(workspace) = failures.ok_or_collect(outcome) else { continue };
        if !context.json() {
            output::line(&report(&workspace))?;
        }
        changed.push(workspace);
    }
    if context.json() {
        output::json(&changed.iter().map(WorkspaceJson::from).collect::<Vec<_>>())?;
    }
    failures.finish()
}

#[cfg(test)]
mod tests {
    use podling_proto::agent::v1::{ActivityState, Evidence};

    use super::*;

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
        assert_eq!(failure.exit_code(), crate::failure::REFUSED);
        assert_eq!(failure.reason(), Some(Reason::Busy));
        let message = failure.describe();
        assert!(message.contains("in use: make -j8; a lease; top; and 1 more; to end"), "{message}");
        assert!(message.contains("podling sleep demo --force"), "{message}");
        workspace.set_connection(AgentConnection::Unknown);
        assert!(busy_failure(&workspace).describe().contains("is unreachable"));
    }
}
