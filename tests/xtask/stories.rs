//! `cargo xtask stories`: the end-to-end stories with freshly built binaries.

use anyhow::Result;

use crate::{step::Steps, targets::STORIES};

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
    add(&mut steps, &more)?;
    steps.finish()
}

/// Adds its steps. Always the whole workspace: cargo then builds every dependency with the same features in each step.
pub(crate) fn add(steps: &mut Steps, more: &[&str]) -> Result<()> {
    if steps.cargo("binaries", &["build", "--workspace", "--bins", "--quiet"], &[])? {
        let args = [&["test", "--workspace", "--quiet", "--test", STORIES], more].concat();
        steps.cargo("end-to-end stories", &args, &[])?;
    } else {
        steps.not_run("end-to-end stories");
    }
    Ok(())
}
