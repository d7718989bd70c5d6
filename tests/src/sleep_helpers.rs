//! Helpers for sleep and wake: short policies, requests, and waits for a state.

use std::time::Duration;

use podling_proto::{
    agent::v1::ActivityState,
    control::v1::{
        CreateWorkspaceRequest, Policy, SleepWorkspaceRequest, State, WakeWorkspaceRequest,
        WatchWorkspacesRequest, Workspace as WireWorkspace, watch_workspaces_response::Event,
    },
};
use tokio::time::{Instant, timeout_at};

use crate::{
    podling::{Podling, Workspace},
    wire_duration, within,
};

/// Returns a policy with this idle timeout and otherwise default values.
#[must_use]
pub fn idle_timeout_policy(idle_timeout: Duration) -> Policy {
    Policy { idle_timeout: wire_duration(idle_timeout), ..Policy::default() }
}

/// Returns the idle time that the agent has counted; zero without an activity.
#[must_use]
pub fn counted_idle(activity: Option<&ActivityState>) -> Duration {
    let counted = activity.and_then(|activity| activity.counted_idle);
    counted.map_or(Duration::ZERO, |counted| counted.try_into().expect("idle time is not negative"))
}

impl Podling {
    /// Creates a workspace with this policy and waits until its agent is connected.
    pub async fn workspace_with_policy(&self, name: &str, policy: Policy) -> Workspace {
        let workspace = self.create_without_waiting(name, policy).await;
        self.wait_until_awake(&workspace).await;
        workspace
    }

    /// Creates a workspace without waiting until it is awake.
    pub async fn create_without_waiting(&self, name: &str, policy: Policy) -> Workspace {
        // The smallest shell, so that a hundred workspaces fit on a small machine.
        let env = [("SHELL".to_owned(), "/bin/sh".to_owned())].into();
        let request =
            CreateWorkspaceRequest { name: name.to_owned(), policy: Some(policy), env, ..Default::default() };
        self.create_requested(request).await
    }

    /// Watches the workspace for `span` and asserts that it stays awake.
    pub async fn assert_stays_awake(&self, workspace: &Workspace, span: Duration) {
        let until = Instant::now() + span;
        let request = WatchWorkspacesRequest { workspace: workspace.id.clone(), ..Default::default() };
        let watch = within("Workspaces.Watch", self.client().workspaces().watch(request)).await;
        let mut watch = watch.expect("watch is opened").into_inner();
        while let Ok(event) = timeout_at(until, watch.message()).await {
            let event = event.expect("watch continues").expect("watch continues");
            if let Some(Event::Workspace(now)) = event.event {
                assert_eq!(now.state(), State::Awake, "{}: {:?}", workspace.name, now.reason);
            }
        }
    }

    /// Requests sleep even if the workspace is in use. Does not wait until it is asleep.
    ///
    /// # Errors
    ///
    /// Fails if the request is rejected, or if its response is lost because the control plane dies.
    pub async fn force_sleep(&self, workspace: &Workspace) -> Result<(), tonic::Status> {
        let request = SleepWorkspaceRequest { workspace: workspace.id.clone(), force: true };
        within("Workspaces.Sleep", self.client().workspaces().sleep(request)).await.map(drop)
    }

    /// Requests wake. Does not wait until the workspace is awake.
    ///
    /// # Errors
    ///
    /// Fails if the request is rejected, or if its response is lost because the control plane dies.
    pub async fn wake(&self, workspace: &Workspace) -> Result<(), tonic::Status> {
        let request = WakeWorkspaceRequest { workspace: workspace.id.clone() };
        within("Workspaces.Wake", self.client().workspaces().wake(request)).await.map(drop)
    }

    /// Requests sleep, even if the workspace is in use, and waits until it is asleep.
    pub async fn sleep_and_wait(&self, workspace: &Workspace) -> WireWorkspace {
        self.force_sleep(workspace).await.expect("sleep is accepted");
        self.wait_for_state(workspace, State::Asleep).await
    }
}
