//! Shows the progress of a workspace while the gateway holds a call until the workspace is awake.

use std::{
    convert::Infallible,
    future::pending,
    io::{self, IsTerminal as _},
};

use podling_proto::control::v1::State;

use crate::{
    client::Client,
    spinner::WorkspaceSpinner,
    workspace_watcher::{WorkspaceChange, WorkspaceWatcher},
};

/// Shows spinners during calls to one workspace.
#[derive(Debug, Clone)]
pub struct WakeSpinner {
    client: Client,
    id: String,
}

impl WakeSpinner {
    pub fn new(client: Client, id: String) -> Self {
        Self { client, id }
    }

    /// Awaits `work`. If stderr is a terminal, shows the state of the workspace meanwhile, and
    /// clears it at the end.
    pub async fn show_during<T>(&self, work: impl Future<Output = T>) -> T {
        if !io::stderr().is_terminal() {
            return work.await;
        }
        tokio::select! {
            biased;
            done = work => done,
            never = self.show() => match never {},
        }
    }

    async fn show(&self) -> Infallible {
        let mut changes = WorkspaceWatcher::new(self.client.clone(), self.id.clone());
        let mut shown: Option<WorkspaceSpinner> = None;
        // If the watch fails, nothing is shown: the call itself reports the reason.
        while let Ok(WorkspaceChange::Current(workspace)) = changes.next().await {
            match (&mut shown, workspace.state()) {
                (_, State::Awake) => shown = None,
                (Some(spinner), _) => spinner.show(&workspace),
                (None, _) => shown = Some(WorkspaceSpinner::new(&workspace)),
            }
        }
        drop(shown);
        pending().await
    }
}
