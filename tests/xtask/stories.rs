//! `cargo xtask stories`: the end-to-end stories with freshly built binaries.

use anyhow::Result;

use crate::{
    step::{Step, Steps},
    targets::STORIES,
};

/// Which stories.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only those whose name contains this.
    filter: Option<String>,
    /// Shows what each story prints.
    #[arg(long)]
    nocapture: bool,
}

/// Runs them alone.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let mut steps = Steps::new()?;
    let mut more = vec!["--"];
    more.extend(args.filter.as_deref());
    more.extend(args.nocapture.then_some("--nocapture"));
    if let Some(stories) = step(&mut steps, &more)? {
        steps.run(stories)?;
    }
    steps.finish()
}

/// Builds what they want. Always the whole workspace: cargo then builds every dependency with the same features in each step.
pub(crate) fn step(steps: &mut Steps, more: &[&str]) -> Result<Option<Step>> {
    let name = "end-to-end stories";
    let test = ["test", "--workspace", "--quiet", "--test", STORIES];
    let built = steps.cargo("binaries", &["build", "--workspace", "--bins", "--quiet"], &[])?
        && steps.cargo("stories, built", &[&test[..], &["--no-run"]].concat(), &[])?;
    if !built {
        steps.not_run(name);
        return Ok(None);
    }
    Ok(Some(Step::cargo(name, &[&test[..], more].concat(), &[])))
}
