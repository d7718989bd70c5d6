//! `podling explain`: shows the state of a workspace, the reason for it, and what happens next.

use std::time::{Duration, SystemTime};

use clap::Args;
use podling_proto::{
    agent::v1::{ActivityState, GetActivityRequest},
    control::v1::{ExplainWorkspaceRequest, ExplainWorkspaceResponse, State, Workspace},
    text,
};
use serde::Serialize;
use tokio::time::timeout;

use crate::{
    archive::{self, ArchiveJson},
    backoff::retry_call,
    client::{Client, Context},
    explain::{self, ExplainData, timeline::LogEntryJson},
    failure::{self, CommandFailure},
    output,
    workspace_json::{ActivityJson, WorkspaceJson},
};

/// How long to wait for the activity from the agent itself. After that, the activity of its last
/// heartbeat is shown.
const AGENT_TIMEOUT: Duration = Duration::from_secs(3);

/// Explain the state of a workspace
///
/// Shows why the workspace is in its state, what keeps it awake, what happens next and how to
/// change that, its archives, and the latest decisions of the control plane. Never wakes the
/// workspace.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// Name or id of a workspace, or of a deleted workspace that still has an archive
    name: String,
}

#[derive(Debug, Serialize)]
struct ExplanationJson {
    #[serde(flatten)]
    workspace: WorkspaceJson,
    /// True if the agent itself reported `activity` just now, false if it is from the last
    /// heartbeat.
    fresh: bool,
    activity: Option<ActivityJson>,
    /// Codes of what a user can do to change the next step: `use`, `keep-awake`, `wake`, …
    remedies: Vec<String>,
    archives: Vec<ArchiveJson>,
    /// Latest decisions, oldest first.
    log: Vec<LogEntryJson>,
}

impl ExplainArgs {
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
            output::json(&ExplanationJson::new(&known))?;
        } else {
            output::print(&explain::render(&known, SystemTime::now()))?;
        }
        Ok(0)
    }

    async fn gather(&self, client: &Client) -> Result<ExplainData, CommandFailure> {
        let answer = match explain_workspace(client, &self.name).await {
            Err(missing) if missing.exit_code() == failure::NOT_FOUND => {
                // The name of a deleted workspace is free again, but its archives have its id.
                let left = archive::list_for_workspace(client, &self.name).await.unwrap_or_default();
                let newest = left.first().ok_or(missing)?;
                explain_workspace(client, &newest.workspace_id).await?
            }
            answer => answer?,
        };
        let id = answer.workspace.as_ref().map_or(self.name.as_str(), |workspace| workspace.id.as_str());
        let archives = archive::list_for_workspace(client, id).await?;
        Ok(ExplainData { answer, selector: self.name.clone(), archives, fresh: false })
    }
}

impl ExplanationJson {
    fn new(known: &ExplainData) -> Self {
        let workspace = known.answer.workspace.clone().unwrap_or_default();
        let activity = workspace.activity.as_ref().map(ActivityJson::from);
        let mut view = WorkspaceJson::from(&workspace);
        if known.fresh {
            view.activity_level = activity.as_ref().map(|activity| activity.level);
        }
        Self {
            workspace: view,
            fresh: known.fresh,
            activity,
            remedies: known
                .answer
                .remedies()
                .map(|remedy| text::word(remedy.as_str_name(), "REMEDY_"))
                .collect(),
            archives: known.archives.iter().map(ArchiveJson::from).collect(),
            log: known.answer.log.iter().map(LogEntryJson::from).collect(),
        }
    }
}

async fn explain_workspace(
    client: &Client,
    workspace: &str,
) -> Result<ExplainWorkspaceResponse, CommandFailure> {
    let request = ExplainWorkspaceRequest { workspace: workspace.to_owned() };
    let answer = retry_call(async || client.workspaces().explain(request.clone()).await);
    Ok(answer.await?)
}

/// Asks the agent of an awake workspace for its activity. Returns `None` if it does not answer in
/// time. Never wakes the workspace.
async fn fetch_activity(client: &Client, workspace: &Workspace) -> Option<ActivityState> {
    if workspace.state() != State::Awake {
        return None;
    }
    let mut activity = client.workspace_client_for(workspace).without_waking().activity();
    timeout(AGENT_TIMEOUT, activity.get(GetActivityRequest {})).await.ok()?.ok()?.into_inner().activity
}
