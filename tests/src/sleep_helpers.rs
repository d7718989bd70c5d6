//! A workspace's nights: short policies, putting it to sleep, waking it, and waiting for what it becomes.

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
    wait::within,
};

/// A span of time as the wire has it.
#[must_use]
pub fn wire_duration(span: Duration) -> Option<prost_types::Duration> {
    Some(span.try_into().expect("a span fits"))
}

/// A policy with this idle timeout and a warning as early as may be.
#[must_use]
pub fn idle_timeout_policy(idle_timeout: Duration) -> Policy {
    Policy { idle_timeout: wire_duration(idle_timeout), ..Policy::default() }
}

/// Idle time that counts.
#[must_use]
pub fn counted_idle(activity: Option<&ActivityState>) -> Duration {
    let counted = activity.and_then(|activity| activity.counted_idle);
    counted.map_or(Duration::ZERO, |counted| counted.try_into().expect("it is not negative"))
}

impl Podling {
    /// Makes a workspace with a policy of its own and waits until one can work in it.
    pub async fn workspace_with_policy(&self, name: &str, policy: Policy) -> Workspace {
        let workspace = self.create_without_waiting(name, policy).await;
        self.wait_until_awake(&workspace).await;
        workspace
    }

    /// Makes a workspace and does not wait for it.
    pub async fn create_without_waiting(&self, name: &str, policy: Policy) -> Workspace {
        // The smallest shell there is, so that a hundred workspaces fit onto a small machine.
        let env = [("SHELL".to_owned(), "/bin/sh".to_owned())].into();
        let request =
            CreateWorkspaceRequest { name: name.to_owned(), policy: Some(policy), env, ..Default::default() };
        let made = within("Workspaces.Create", self.client().workspaces().create(request)).await;
        let made = made.expect("the workspace is made").into_inner().workspace.expect("it is described");
        Workspace { id: made.id, name: name.to_owned() }
    }

    /// Watches it for so long; it must be awake all the time.
    pub async fn stays_awake(&self, workspace: &Workspace, span: Duration) {
        let until = Instant::now() + span;
        let request = WatchWorkspacesRequest { workspace: workspace.id.clone(), ..Default::default() };
        let watch = within("Workspaces.Watch", self.client().workspaces().watch(request)).await;
        let mut watch = watch.expect("it is watched").into_inner();
        while let Ok(told) = timeout_at(until, watch.message()).await {
            let told = told.expect("the watch goes on").expect("the watch goes on");
            if let Some(Event::Workspace(now)) = told.event {
                assert_eq!(now.state(), State::Awake, "{}: {:?}", workspace.name, now.reason);
            }
        }
    }

    /// Puts it to sleep though it be in use. It need not be asleep when this returns; the answer may be lost with the control plane.
    pub async fn force_sleep(&self, workspace: &Workspace) -> Result<(), tonic::Status> {
        let request = SleepWorkspaceRequest { workspace: workspace.id.clone(), force: true };
        within("Workspaces.Sleep", self.client().workspaces().sleep(request)).await.map(drop)
    }

    /// Wants it awake. It need not be when this returns; the answer may be lost with the control plane.
    pub async fn wake(&self, workspace: &Workspace) -> Result<(), tonic::Status> {
        let request = WakeWorkspaceRequest { workspace: workspace.id.clone() };
        within("Workspaces.Wake", self.client().workspaces().wake(request)).await.map(drop)
    }

    /// Puts it to sleep and waits until it sleeps.
    pub async fn sleep_and_wait(&self, workspace: &Workspace) -> WireWorkspace {
        self.force_sleep(workspace).await.expect("it may be put to sleep");
        self.wait_for_state(workspace, State::Asleep).await
    }
}
