//! Shows the progress of a workspace while the gateway holds a call until the workspace is awake.

use std::{
    convert::Infallible,
    future::pending,
    io::{self, IsTerminal as _},
    time::Duration,
};

use podling_proto::control::v1::State;
use tokio::time::sleep;

use crate::{
    client::Client,
    notice,
    spinner::WorkspaceSpinner,
    state_waiter::describe,
    workspace_watcher::{WorkspaceChange, WorkspaceWatcher},
};

/// Wait after which a line says what the command waits for, if stderr is not a terminal. Longer than
/// most starts.
const NOTICE_DELAY: Duration = Duration::from_secs(5);

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
    /// clears it at the end. Otherwise prints a line after `NOTICE_DELAY` that says what `work`
    /// waits for, and another one when that changes.
    pub async fn show_during<T>(&self, work: impl Future<Output = T>) -> T {
        let is_terminal = io::stderr().is_terminal();
        tokio::select! {
            biased;
            done = work => done,
            never = self.show(), if is_terminal => match never {},
            never = self.print(), if !is_terminal => match never {},
        }
    }

    async fn print(&self) -> Infallible {
        sleep(NOTICE_DELAY).await;
        let mut changes = WorkspaceWatcher::new(self.client.clone(), self.id.clone());
        let mut printed = String::new();
        loop {
            let line = match changes.next().await {
                Ok(WorkspaceChange::Current(workspace)) if workspace.state() == State::Awake => continue,
                Ok(WorkspaceChange::Current(workspace)) => describe(&workspace),
                Ok(WorkspaceChange::Disconnected) => "the control plane does not answer".to_owned(),
                // The call itself reports the reason.
                Ok(WorkspaceChange::Deleted) | Err(_) => return pending().await,
            };
            if line != printed {
                notice!("podling: waiting: {line}");
                printed = line;
            }
        }
    }

    async fn show(&self) -> Infallible {
        let mut changes = WorkspaceWatcher::new(self.client.clone(), self.id.clone());
        let mut shown: Option<WorkspaceSpinner> = None;
        // If the watch fails, nothing is shown: the call itself reports the reason.
        loop {
            let workspace = match changes.next().await {
                Ok(WorkspaceChange::Current(workspace)) => workspace,
                Ok(WorkspaceChange::Disconnected) => continue,
                Ok(WorkspaceChange::Deleted) | Err(_) => break,
            };
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
