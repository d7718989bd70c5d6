//! The test programs of the workspace, from cargo's own description of it.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::program;

/// The stories' test program: it runs as a step of its own.
pub(crate) const STORIES: &str = "stories";

/// The test program that wants a cluster, likewise.
pub(crate) const CLUSTER: &str = "cluster";

/// Names of all other integration tests.
pub(crate) fn integration_tests() -> Result<BTreeSet<String>> {
    let output = program::cargo()
        .args(["metadata", "--no-deps", "--format-version=1"])
        .output()
        .context("running cargo metadata")?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("reading cargo metadata")?;
    let list = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    Ok(list(&metadata, "packages")
        .iter()
        .flat_map(|package| list(package, "targets"))
        .filter(|target| list(target, "kind").contains(&"test".into()))
        // Those that want a feature are steps of their own.
        .filter(|target| list(target, "required-features").is_empty())
        .filter_map(|target| target["name"].as_str().map(str::to_owned))
        .filter(|name| name != STORIES && name != CLUSTER)
        .collect())
}
