//! What a story sees of its Podling from outside: what the control plane says, and what lies in the backup store.

use std::{fs, path::Path};

use bytes::Bytes;
use podling_proto::control::v1::{
    AgentConnection, ExplainWorkspaceRequest, GetWorkspaceRequest, LogEntry, State,
    Workspace as WireWorkspace,
};

use super::{Podling, Workspace};
use crate::{
    http::send,
    wait::{wait_for, within},
};

impl Podling {
    /// What the control plane says of it.
    pub async fn get(&self, workspace: &Workspace) -> WireWorkspace {
        let request = GetWorkspaceRequest { workspace: workspace.id.clone() };
        let got = within("Workspaces.Get", self.client().workspaces().get(request)).await;
        got.expect("the workspace is there").into_inner().workspace.expect("it is described")
    }

    /// Waits until it is awake and its agent connected.
    pub async fn wait_until_awake(&self, workspace: &Workspace) -> WireWorkspace {
        wait_for(&format!("{} is awake", workspace.name), async || {
            let now = self.get(workspace).await;
            assert_ne!(now.state(), State::Failed, "{}: {:?}\n{}", workspace.name, now.reason, self.log());
            (now.state() == State::Awake && now.connection() == AgentConnection::Connected).then_some(now)
        })
        .await
    }

    /// Waits until it is in this state.
    pub async fn wait_for_state(&self, workspace: &Workspace, state: State) -> WireWorkspace {
        wait_for(&format!("{} is {state:?}", workspace.name), async || {
            let now = self.get(workspace).await;
            (now.state() == state).then_some(now)
        })
        .await
    }

    /// What was decided of it, the latest last.
    pub async fn decided(&self, workspace: &Workspace) -> Vec<LogEntry> {
        let request = ExplainWorkspaceRequest { workspace: workspace.id.clone() };
        let said = within("Workspaces.Explain", self.client().workspaces().explain(request)).await;
        said.expect("it is explained").into_inner().log
    }

    /// The value of a metric without labels.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let request =
            http::Request::get("/metrics").header("authorization", format!("Bearer {}", self.token));
        let answer = send(self.address(), request.body(Bytes::new()).expect("a request")).await;
        let text = String::from_utf8_lossy(answer.body()).into_owned();
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    }

    /// Names of what lies in the backup store, sorted: the folder that is used unless an argument says otherwise.
    pub fn stored_names(&self) -> Vec<String> {
        names(&self.data.join("backups"))
    }
}

/// Names in a folder, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut names: Vec<_> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
