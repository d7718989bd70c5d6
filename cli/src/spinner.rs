//! Shows the progress of a workspace on stderr: while a command waits for it, and while the gateway
//! holds a call until the workspace is awake.

use std::{
    convert::Infallible,
    future::pending,
    io::{self, IsTerminal as _},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use podling_proto::control::v1::{State, Workspace, progress::Stage};
use tokio::time::sleep;

use crate::{
    client::Client,
    notice, output,
    workspace_text::{describe, describe_stage},
    workspace_watcher::{WorkspaceChange, WorkspaceWatcher},
};

/// Spinner or bar that shows the state of a workspace. Dropping it clears its line.
#[derive(Debug)]
pub struct WorkspaceSpinner {
    bar: ProgressBar,
    /// Stage that the bar shows, and whether its total is known. `None` while a spinner is shown.
    measured: Option<(Stage, bool)>,
}

impl WorkspaceSpinner {
    pub fn new(workspace: &Workspace) -> Self {
        let mut spinner = Self { bar: output::spinner(describe(workspace)), measured: None };
        spinner.show(workspace);
        spinner
    }

    pub fn show(&mut self, workspace: &Workspace) {
        let progress = workspace.progress.as_ref();
        let measured = progress.map(|progress| (progress.stage(), progress.total_bytes > 0));
        if measured != self.measured {
            self.measured = measured;
            self.bar.set_style(match measured {
                Some((_, bounded)) => output::stage_style(bounded),
                None => ProgressStyle::default_spinner(),
            });
        }
        match progress {
            Some(progress) => {
                self.bar.set_length(progress.total_bytes);
                self.bar.set_position(progress.bytes);
                self.bar.set_message(format!("{}: {}", workspace.name, describe_stage(progress)));
            }
            None => self.bar.set_message(describe(workspace)),
        }
    }

    /// Prints a line above the spinner.
    pub fn say(&self, line: &str) {
        self.bar.suspend(|| notice!("{line}"));
    }
}

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
        tokio::select! {
            biased;
            done = work => done,
            never = self.show() => match never {},
        }
    }

    async fn show(&self) -> Infallible {
        let is_terminal = io::stderr().is_terminal();
        if !is_terminal {
            sleep(NOTICE_DELAY).await;
        }
        let mut changes = WorkspaceWatcher::new(self.client.clone(), self.id.clone());
        let (mut shown, mut printed) = (None::<WorkspaceSpinner>, String::new());
        loop {
            let line = match changes.next().await {
                Ok(WorkspaceChange::Current(workspace)) if workspace.state() == State::Awake => {
                    shown = None;
                    continue;
                }
                Ok(WorkspaceChange::Current(workspace)) if is_terminal => {
                    match &mut shown {
                        Some(spinner) => spinner.show(&workspace),
                        None => shown = Some(WorkspaceSpinner::new(&workspace)),
                    }
                    continue;
                }
                Ok(WorkspaceChange::Current(workspace)) => describe(&workspace),
                Ok(WorkspaceChange::Disconnected) => "the control plane does not answer".to_owned(),
                // The call itself reports the reason.
                Ok(WorkspaceChange::Deleted) | Err(_) => break,
            };
            if line != printed && !is_terminal {
                notice!("podling: waiting: {line}");
                printed = line;
            }
        }
        drop(shown);
        pending().await
    }
}

#[cfg(test)]
mod tests {
    use podling_proto::control::v1::Progress;

    use super::*;

    #[test]
    fn spinner_becomes_bar_while_progress_is_known() {
        let mut workspace = Workspace { name: "demo".to_owned(), ..Workspace::default() };
        let mut spinner = WorkspaceSpinner::new(&workspace);
        assert_eq!(spinner.measured, None);
        workspace.progress = Some(Progress { stage: Stage::Proving.into(), ..Progress::default() });
        spinner.show(&workspace);
        assert_eq!(spinner.measured, Some((Stage::Proving, false)));
        workspace.progress = None;
        spinner.show(&workspace);
        assert_eq!(spinner.measured, None);
    }
}
