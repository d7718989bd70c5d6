//! `cargo xtask stories` builds the binaries and runs the end-to-end stories.

use anyhow::Result;

use crate::{
    gate::{Gate, GateStep},
    test_programs::{TestPrograms, TestSelection},
};

/// Name of the gate's step that runs the stories on processes.
pub(crate) const STORIES: &str = "end-to-end stories";
/// Argument for the stories' program. Stories mostly wait, so several run at once.
pub(crate) const THREADS: &str = "--test-threads=4";

#[derive(Debug, clap::Args)]
pub(crate) struct StoryArgs {
    /// Run only stories whose name contains this text
    filter: Option<String>,
    /// Show the output of each story
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
