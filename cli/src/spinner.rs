//! Shows the progress of a workspace on stderr, if stderr is a terminal. A bar is shown while the
//! workspace is archived or restored, otherwise a spinner.

use indicatif::ProgressBar;
use podling_proto::control::v1::{Workspace, progress::Stage};

use crate::{notice, output, progress::stage_text, state_waiter::describe};

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
                None => output::spinner_style(),
            });
        }
        match progress {
            Some(progress) => {
                self.bar.set_length(progress.total_bytes);
                self.bar.set_position(progress.bytes);
                self.bar.set_message(format!("{}: {}", workspace.name, stage_text(progress)));
            }
            None => self.bar.set_message(describe(workspace)),
        }
    }

    /// Prints a line above the spinner.
    pub fn say(&self, line: &str) {
        self.bar.suspend(|| notice!("{line}"));
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
