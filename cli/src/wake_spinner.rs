//! WakeSpinner for a call that the gateway holds until its workspace is awake: meanwhile people see what that is doing. Must not know the
//! call.

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

/// Where a call goes that may have to wait.
#[derive(Debug, Clone)]
pub struct WakeSpinner {
    client: Client,
    id: String,
}

impl WakeSpinner {
    /// For calls into the workspace with this id.
    pub fn new(client: Client, id: String) -> Self {
        Self { client, id }
    }

    /// Does it; on a terminal it is shown meanwhile what the workspace does. Nothing of that is left when it answers.
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
        // Where nothing more is learned, the call itself says why.
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
