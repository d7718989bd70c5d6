//! Observes a control plane from outside, by its responses and by the files in the backup store.

use bytes::Bytes;
use podling_proto::control::v1::{
    AgentConnection, ExplainWorkspaceRequest, GetWorkspaceRequest, LogEntry, State,
    Workspace as WireWorkspace,
};

use super::{Podling, Workspace};
use crate::{http::send, tree::names, wait_for, within};

impl Podling {
    /// Returns the workspace as the control plane reports it.
    pub async fn get(&self, workspace: &Workspace) -> WireWorkspace {
        let request = GetWorkspaceRequest { workspace: workspace.id.clone() };
        let got = within("Workspaces.Get", self.client().workspaces().get(request)).await;
        got.expect("workspace exists").into_inner().workspace.expect("response has the workspace")
    }

    /// Waits until the workspace is awake and its agent is connected. Panics if the start fails.
    pub async fn wait_until_awake(&self, workspace: &Workspace) -> WireWorkspace {
        wait_for(&format!("{} is awake", workspace.name), async || {
            let now = self.get(workspace).await;
            assert_ne!(now.state(), State::Failed, "{}: {:?}\n{}", workspace.name, now.reason, self.log());
            (now.state() == State::Awake && now.connection() == AgentConnection::Connected).then_some(now)
        })
        .await
    }

    /// Waits until the workspace is in this state.
    pub async fn wait_for_state(&self, workspace: &Workspace, state: State) -> WireWorkspace {
        wait_for(&format!("{} is {state:?}", workspace.name), async || {
            let now = self.get(workspace).await;
            (now.state() == state).then_some(now)
        })
        .await
    }

    /// Returns the decision log of the workspace, newest entry last.
    pub async fn transition_log(&self, workspace: &Workspace) -> Vec<LogEntry> {
        let request = ExplainWorkspaceRequest { workspace: workspace.id.clone() };
        let explanation = within("Workspaces.Explain", self.client().workspaces().explain(request)).await;
        explanation.expect("workspace is explained").into_inner().log
    }

    /// Returns the value of a metric that has no labels.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let request =
            http::Request::get("/metrics").header("authorization", format!("Bearer {}", self.token));
        let answer = send(self.address(), request.body(Bytes::new()).expect("a request")).await;
        let text = String::from_utf8_lossy(answer.body()).into_owned();
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    }

    /// Returns the sorted names of the files in the default backup store.
    pub fn stored_names(&self) -> Vec<String> {
        names(&self.data.join("backups"))
    }
}
