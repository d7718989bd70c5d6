//! Provides the tree of files for the measurements of archives. It consists of Python packages for
//! notebooks, which pip fetches once into the cache.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use podling_tests::tools;

use crate::report::{Report, shell};

/// Pinned packages, so that two runs measure the same. Their dependencies are not pinned.
const PACKAGES: [&str; 3] = ["numpy==2.4.6", "pandas==3.1.1", "jupyterlab==4.6.6"];
/// Arguments of `python3` before `--target`.
const PIP: [&str; 7] = [
    "-m",
    "pip",
    "install",
    "--quiet",
    "--root-user-action=ignore",
    "--disable-pip-version-check",
    "--no-warn-script-location",
];

/// Returns the path of the tree, and fetches the tree if it is missing. Returns `None` if that
/// fails, and adds the reason to the report.
pub(crate) fn tree(report: &mut Report) -> Result<Option<PathBuf>> {
    for (program, package) in [("zip", "zip"), ("unzip", "unzip"), ("python3", "python3-pip")] {
        if Command::new(program).arg("--help").output().is_err() {
            report.skip("archives", &format!("{program} is missing; run apt-get install {package}"));
            return Ok(None);
        }
    }
    let name = format!("site-packages-{}", PACKAGES.join("-").replace("==", "-"));
    let tree = tools::cache().context("neither PODLING_CACHE nor HOME is set")?.join(name);
    if !tree.exists()
        && let Err(error) = fetch(&tree)
    {
        report.skip("archives", &format!("{error:#}"));
        return Ok(None);
    }
    let count = shell(&format!("find '{}' -type f | wc -l", tree.display()))?;
    let megabytes = shell(&format!("du -sm --apparent-size '{}' | cut -f1", tree.display()))?;
    let zip = shell("zip -v | sed -n 2p | cut -d' ' -f3,4")?;
    report.fact(format!(
        "site-packages: {} ({count} files, {megabytes} MiB); Info-ZIP's {zip}",
        PACKAGES.join(", ").replace("==", " ")
    ));
    Ok(Some(tree))
}

/// Fetches the packages into a directory beside `tree` and renames it, so that an incomplete tree
/// is never used.
fn fetch(tree: &Path) -> Result<()> {
    let part = tree.with_extension("part");
    println!("fetching {} into {}", PACKAGES.join(", "), tree.display());
    if part.exists() {
        fs::remove_dir_all(&part)?;
    }
    fs::create_dir_all(&part)?;
    let installed = Command::new("python3").args(PIP).arg("--target").arg(&part).args(PACKAGES).status()?;
    ensure!(installed.success(), "pip install {}: {installed}", PACKAGES.join(" "));
    Ok(fs::rename(&part, tree)?)
}

/// Copies the tree with its times and permissions.
pub(crate) fn copy(tree: &Path, to: &Path) -> Result<()> {
    let copied = Command::new("cp").args(["-a", "--reflink=auto"]).arg(tree).arg(to).status()?;
    ensure!(copied.success(), "cp {}: {copied}", tree.display());
    Ok(())
}
