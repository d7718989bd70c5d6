//! `cargo xtask stories`: the end-to-end stories with freshly built binaries.

use anyhow::Result;

use crate::{
    gate::{Gate, GateStep},
    test_programs::{TestPrograms, TestSelection},
};

/// Name of the step.
pub(crate) const STORIES: &str = "end-to-end stories";
/// Stories mostly wait, so several run at once.
pub(crate) const THREADS: &str = "--test-threads=4";

#[derive(Debug, clap::Args)]
pub(crate) struct StoryArgs {
    /// Runs only the stories whose name contains this.
    filter: Option<String>,
    /// Shows the output of each story.
    #[arg(long)]
    nocapture: bool,
}

pub(crate) fn run(args: &StoryArgs) -> Result<bool> {
    let mut gate = Gate::new()?;
    let mut more: Vec<&str> = args.filter.as_deref().into_iter().chain([THREADS]).collect();
    more.extend(args.nocapture.then_some("--nocapture"));
    match TestPrograms::build(&mut gate, TestSelection::Stories)? {
        Some(programs) => {
            gate.run(GateStep::tests(STORIES, programs.stories(&more)?))?;
        }
        None => gate.not_run(STORIES),
    }
    gate.finish()
}
