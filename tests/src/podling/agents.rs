//! Accesses the agents of a story's workspaces without the gateway, and their processes.

use std::{fs, time::Duration};

use podling_proto::control::v1::CreateTokenRequest;
use rustix::process::Signal;
use serde_json::Value;

use super::{Podling, Workspace, pods::PodCluster};
use crate::{
    Client, agent_client,
    client_helpers::{argv, wire_duration},
    net::DialAddress,
    processes::{RunningProcess, signal},
    within,
};

impl Podling {
    /// Returns the address that the workspace's agent listens on.
    pub fn agent_address(&self, workspace: &Workspace) -> DialAddress {
        match &self.pods {
            Some(pods) => DialAddress::Tcp(pods.agent_address(&workspace.id)),
            None => {
                DialAddress::Unix(self.data.join("workspaces").join(&workspace.id).join("run/agent.sock"))
            }
        }
    }

    /// Returns a client without a token that connects to the agent directly. It accepts only the
    /// certificate whose fingerprint the control plane reports.
    pub async fn agent_client(&self, workspace: &Workspace) -> Client {
        let agent = self.get(workspace).await.agent.expect("workspace has an agent");
        agent_client::pinned_client(self.agent_address(workspace), &agent.key_fingerprint)
    }

    /// Returns the process id of the agent.
    pub fn agent_pid(&self, workspace: &Workspace) -> u32 {
        if let Some(pods) = &self.pods {
            return pods.agent_pid(&workspace.id);
        }
        let path = self.data.join("workspaces").join(&workspace.id).join("run/agent.json");
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let value: Value = serde_json::from_str(&text).expect("agent.json is JSON");
        value["pid"].as_u64().and_then(|pid| pid.try_into().ok()).expect("agent.json has a pid")
    }

    /// Returns the credential that the agent sends to the control plane.
    pub async fn agent_credential(&self, workspace: &Workspace) -> String {
        match &self.pods {
            Some(_) => self.client().for_workspace(&workspace.id).sh("cat /run/podling/token/token").await,
            None => {
                let path = self.data.join("workspaces").join(&workspace.id).join("run/credential");
                fs::read_to_string(path).expect("a local agent's credential")
            }
        }
    }

    /// Kills the agent with SIGKILL.
    pub fn kill_agent(&self, workspace: &Workspace) {
        signal(self.agent_pid(workspace), Signal::KILL);
    }

    /// Returns a client with an admin token that connects to the agent directly. The client works
    /// even while no control plane runs.
    pub async fn admin_agent_client(&self, workspace: &Workspace) -> Client {
        self.agent_client(workspace).await.token(&self.agent_token(workspace, &["admin"]).await)
    }

    /// Creates a token with these verbs for direct calls to the agent. It expires after an hour.
    pub async fn agent_token(&self, workspace: &Workspace, verbs: &[&str]) -> String {
        let request = CreateTokenRequest {
            verbs: argv(verbs),
            workspaces: vec![workspace.id.clone()],
            for_agent: true,
            ttl: wire_duration(Duration::from_secs(3600)),
            ..Default::default()
        };
        let made = within("Tokens.Create", self.client().tokens().create(request)).await;
        made.expect("a token").into_inner().token
    }

    /// Returns the running agents of all workspaces. For pods, `command` is the pod's uid, and
    /// `pid` is 0 if the agent has ended.
    pub fn running_agents(&self) -> Vec<RunningProcess> {
        if let Some(pods) = &self.pods {
            return pods.running_agents();
        }
        let all = self.running_processes();
        all.into_iter().filter(|process| process.command.contains("--credential-file")).collect()
    }

    /// Returns the processes in all workspaces. On the local backend, the result includes the
    /// processes of the control plane.
    pub fn workspace_processes(&self) -> Vec<RunningProcess> {
        self.pods.as_ref().map_or_else(|| self.running_processes(), PodCluster::workspace_processes)
    }
}
