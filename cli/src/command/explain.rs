//! `podling explain`: why a workspace is what it is, what happens next, and what was decided.

use std::time::{Duration, SystemTime};

use clap::Args;
use podling_proto::{
    agent::v1::{ActivityState, GetActivityRequest},
    control::v1::{ExplainWorkspaceRequest, ExplainWorkspaceResponse, State, Workspace},
};
use serde::Serialize;
use tokio::time::timeout;

use crate::{
    archive::{self, ArchiveView},
    backoff::retry_call,
    client::Client,
    context::Context,
    explain::{self, ExplainData, timeline::LogEntryView},
    failure::{self, CommandFailure},
    output,
    view::{ActivityView, WorkspaceView},
};

/// How long the agent may take to answer before its last heartbeat has to do.
const AGENT_TIMEOUT: Duration = Duration::from_secs(3);

/// Say why a workspace is what it is, how we know, what happens next, and what was decided lately
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// The workspace's name or id; also of one that was deleted, as long as an archive of it is left.
    name: String,
}

#[derive(Debug, Serialize)]
struct ExplanationView {
    #[serde(flatten)]
    workspace: WorkspaceView,
    /// From the agent itself, just now, rather than from its last heartbeat.
    fresh: bool,
    activity: Option<ActivityView>,
    /// What would change what happens next.
    changes: Vec<String>,
    backups: Vec<ArchiveView>,
    /// What was decided, the latest last.
    log: Vec<LogEntryView>,
}

impl ExplainArgs {
    /// Says it.
    pub async fn run(self, context: &Context) -> Result<u8, CommandFailure> {
        let client = context.client().await?;
        let mut known = self.gather(&client).await?;
        if let Some(workspace) = &mut known.answer.workspace
            && let Some(activity) = fetch_activity(&client, workspace).await
        {
            workspace.activity = Some(activity);
            known.fresh = true;
        }
        if context.json() {
            output::json(&ExplanationView::new(&known))?;
        } else {
            output::print(&explain::render(&known, SystemTime::now()))?;
        }
        Ok(0)
    }

    async fn gather(&self, client: &Client) -> Result<ExplainData, CommandFailure> {
        let answer = match explain_workspace(client, &self.name).await {
            Err(missing) if missing.exit_code() == failure::NOT_FOUND => {
                // A deleted one has no name any more, but its archive tells which it was.
                let left = archive::list_for_workspace(client, &self.name).await.unwrap_or_default();
                let newest = left.first().ok_or(missing)?;
                explain_workspace(client, &newest.workspace_id).await?
            }
            answer => answer?,
        };
        let id = answer.workspace.as_ref().map_or(self.name.as_str(), |workspace| workspace.id.as_str());
        let backups = archive::list_for_workspace(client, id).await?;
        Ok(ExplainData { answer, backups, fresh: false })
    }
}

impl ExplanationView {
    fn new(known: &ExplainData) -> Self {
        let workspace = known.answer.workspace.clone().unwrap_or_default();
        let activity = workspace.activity.as_ref().map(ActivityView::from);
        let mut view = WorkspaceView::from(&workspace);
        if known.fresh {
            view.activity = activity.as_ref().map(|activity| activity.level);
        }
        Self {
            workspace: view,
            fresh: known.fresh,
            activity,
            changes: known.answer.changes.clone(),
            backups: known.backups.iter().map(ArchiveView::from).collect(),
            log: known.answer.log.iter().map(LogEntryView::from).collect(),
        }
    }
}

async fn explain_workspace(
    client: &Client,
    workspace: &str,
) -> Result<ExplainWorkspaceResponse, CommandFailure> {
    let request = ExplainWorkspaceRequest { workspace: workspace.to_owned() };
    let answer = retry_call(|| {
        let (mut workspaces, request) = (client.workspaces(), request.clone());
        async move { workspaces.explain(request).await }
    });
    Ok(answer.await?)
}

/// The activity from the agent itself, if it serves; looking never wakes anything.
async fn fetch_activity(client: &Client, workspace: &Workspace) -> Option<ActivityState> {
    if workspace.state() != State::Awake {
        return None;
    }
    let mut activity = client.workspace_client_for(workspace).without_waking().activity();
    timeout(AGENT_TIMEOUT, activity.get(GetActivityRequest {})).await.ok()?.ok()?.into_inner().activity
}
