//! Decides which tests a change can reach (`cargo xtask test --quick`).
//!
//! The rules use only the names of the files that differ from `main`:
//! - Prose (`*.md`, `docs`), benchmarks, and files for clusters (`deploy`, `images`,
//!   `tests/cluster`) reach no test but the stories that check the repository's files.
//! - A file below a crate's `tests` directory reaches the tests of that crate alone.
//! - Every other file of a crate reaches the tests of that crate and of every crate that depends on
//!   it. If it is a crate of the product, the file also reaches all stories, because they run its
//!   binaries.
//! - A story's file reaches the stories of its module. The test library (`tests/src`) reaches all
//!   stories.
//! - Every other file, such as `Cargo.lock`, reaches everything. So does a tree that has no base or
//!   does not differ from it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::Result;

use crate::{program, test_programs::workspace_packages};

/// Names of the commit on which the branch may be based. The first that exists is used.
const BASES: [&str; 3] = ["main", "origin/main", "origin/HEAD"];
/// Package of the test library, the stories, the cluster tests and the benchmarks.
const HARNESS: &str = "tests";
/// Prefixes of files that no test of this machine uses.
const OUT_OF_REACH: [&str; 6] =
    ["deploy/", "images/", "docs/", "tests/cluster/", "tests/benches/", "LICENSE"];
/// Filter for the stories that check the repository's files. They always run, because any change
/// can break them and they take no time.
const ALWAYS: &str = "repository::";

/// The tests that a change can reach.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reach {
    /// Directories of packages, relative to the root; `None` means all packages.
    packages: Option<BTreeSet<PathBuf>>,
    /// Prefixes of the names of stories; `None` means all stories.
    stories: Option<BTreeSet<String>>,
}

/// The directory of each package, relative to the root, with the directories of its dependencies.
type Dependencies = BTreeMap<PathBuf, BTreeSet<PathBuf>>;

impl Reach {
    /// Compares the working tree, committed or not, with its base. If nothing differs, everything
    /// is reached.
    pub(crate) fn of_working_tree() -> Result<Self> {
        let files = changed_files().unwrap_or_default();
        if files.is_empty() {
            println!("no difference from {} is known; testing everything", BASES[0]);
            return Ok(Self { packages: None, stories: None });
        }
        Ok(Self::of(&files, &dependencies()?))
    }

    fn of(files: &[String], dependencies: &Dependencies) -> Self {
        let everything = Self { packages: None, stories: None };
        let (mut packages, mut stories) = (BTreeSet::new(), Some(BTreeSet::from([ALWAYS.to_owned()])));
        for file in files {
            if file.ends_with(".md") || OUT_OF_REACH.iter().any(|prefix| file.starts_with(prefix)) {
                continue;
            }
            // Packages are nested, and the innermost one owns the file.
            let holds = |package: &&PathBuf| Path::new(file).starts_with(package);
            let package =
                dependencies.keys().filter(holds).max_by_key(|package| package.components().count());
            let Some(package) = package else { return everything };
            let inside = Path::new(file).strip_prefix(package).unwrap_or(Path::new(file));
            if package != Path::new(HARNESS) {
                if inside.starts_with("tests") {
                    packages.insert(package.clone());
                } else {
                    packages.extend(dependents(package, dependencies));
                    // Stories do not run xtask.
                    let is_run = dependents(package, dependencies).contains(Path::new(HARNESS));
                    stories = stories.filter(|_| !is_run);
                }
            } else if let Ok(story) = inside.strip_prefix("stories") {
                stories = stories.zip(module(story)).map(|(mut all, module)| {
                    all.insert(module);
                    all
                });
            } else {
                packages.insert(package.clone());
                stories = None;
            }
        }
        Self { packages: Some(packages), stories }
    }

    pub(crate) fn has_package(&self, directory: &Path) -> bool {
        let directory = directory.strip_prefix(program::root()).unwrap_or(directory);
        self.packages.as_ref().is_none_or(|packages| packages.contains(directory))
    }

    /// Returns filters for the stories' program, which runs all stories if there is no filter.
    pub(crate) fn story_filters(&self) -> Vec<&str> {
        self.stories.iter().flatten().map(String::as_str).collect()
    }
}

/// Returns the files that differ from the base; `None` if git or a base is missing.
fn changed_files() -> Option<Vec<String>> {
    let base = BASES.iter().find_map(|base| git(&["merge-base", "HEAD", base]))?;
    let changed = git(&["diff", "--name-only", base.trim()])?;
    let new = git(&["ls-files", "--others", "--exclude-standard"])?;
    Some(changed.lines().chain(new.lines()).map(str::to_owned).collect())
}

fn git(args: &[&str]) -> Option<String> {
    let output = program::program("git").args(args).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Returns the prefix of the stories in a file, such as `both_backends::quota::` for
/// `both_backends/quota.rs`. Returns `None` for a file that is not a module.
fn module(story: &Path) -> Option<String> {
    let path = story.with_extension("");
    let words: Vec<_> = path.iter().filter_map(|word| word.to_str()).collect();
    (words != ["main"] && story.extension().is_some_and(|extension| extension == "rs"))
        .then(|| words.join("::") + "::")
}

/// Returns the package and all packages that depend on it, directly or not.
fn dependents(package: &Path, dependencies: &Dependencies) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::from([package.to_owned()]);
    loop {
        let depends = |on: &BTreeSet<PathBuf>| on.iter().any(|dependency| found.contains(dependency));
        let more: Vec<_> =
            dependencies.iter().filter(|(_, on)| depends(on)).map(|(package, _)| package.clone()).collect();
        let before = found.len();
        found.extend(more);
        if found.len() == before {
            return found;
        }
    }
}

/// Reads the dependencies between the packages of the workspace, including dev-dependencies.
fn dependencies() -> Result<Dependencies> {
    let root = program::root();
    let inside = |directory: &Path| directory.strip_prefix(&root).ok().map(Path::to_owned);
    let mut all = Dependencies::new();
    for package in workspace_packages()? {
        let manifest = package["manifest_path"].as_str().map(Path::new).and_then(Path::parent);
        let on = package["dependencies"].as_array().cloned().unwrap_or_default();
        let on = on.iter().filter_map(|dependency| inside(Path::new(dependency["path"].as_str()?)));
        if let Some(directory) = manifest.and_then(inside) {
            all.insert(directory, on.collect());
        }
    }
    // The manifest of the tests does not list the binaries that stories run.
    let binaries = ["agent", "control", "cli"].map(PathBuf::from);
    all.entry(HARNESS.into()).or_default().extend(binaries);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(files: &[&str]) -> Reach {
        let files: Vec<_> = files.iter().map(|file| (*file).to_owned()).collect();
        let package = |name: &str, on: &[&str]| (PathBuf::from(name), on.iter().map(PathBuf::from).collect());
        let dependencies = Dependencies::from([
            package("proto", &[]),
            package("agent", &["proto"]),
            package("control/core", &[]),
            package("control", &["control/core", "proto"]),
            package("cli", &["agent", "control"]),
            package("tests", &["agent", "control", "cli", "tests/testkit"]),
            package("tests/testkit", &["proto"]),
            package("tests/xtask", &[]),
        ]);
        Reach::of(&files, &dependencies)
    }

    fn packages(reach: &Reach) -> Vec<String> {
        reach.packages.iter().flatten().map(|package| package.display().to_string()).collect()
    }

    #[test]
    fn prose_and_cluster_files_reach_only_repository_stories() {
        let reach = reach(&["README.md", "deploy/crds/x.yaml", "tests/cluster/node"]);
        assert!(packages(&reach).is_empty());
        assert_eq!(reach.story_filters(), [ALWAYS]);
    }

    #[test]
    fn product_reaches_dependents_and_all_stories() {
        let core = reach(&["control/core/src/quota.rs"]);
        assert_eq!(packages(&core), ["cli", "control", "control/core", "tests"]);
        assert!(core.story_filters().is_empty(), "no filter means all stories");
        assert!(core.has_package(&program::root().join("control")));
        assert!(!core.has_package(&program::root().join("agent")));
    }

    #[test]
    fn crate_tests_reach_their_crate_alone() {
        let reach = reach(&["agent/tests/files/write.rs"]);
        assert_eq!(packages(&reach), ["agent"]);
        assert_eq!(reach.story_filters(), [ALWAYS]);
    }

    #[test]
    fn story_reaches_its_module() {
        let one = reach(&["tests/stories/both_backends/sleep_and_wake.rs", "tests/stories/first_run.rs"]);
        assert_eq!(one.story_filters(), ["both_backends::sleep_and_wake::", "first_run::", ALWAYS]);
        assert!(reach(&["tests/stories/main.rs"]).story_filters().is_empty());
        assert!(reach(&["tests/stories/traces/177"]).story_filters().is_empty());
        assert!(reach(&["tests/src/cli.rs"]).story_filters().is_empty());
        let kit = reach(&["tests/testkit/src/wait.rs"]);
        assert_eq!(packages(&kit), ["tests", "tests/testkit"]);
        assert!(kit.story_filters().is_empty());
    }

    #[test]
    fn gate_itself_reaches_no_story() {
        let reach = reach(&["tests/xtask/gate.rs"]);
        assert_eq!(packages(&reach), ["tests/xtask"]);
        assert_eq!(reach.story_filters(), [ALWAYS]);
    }

    #[test]
    fn file_outside_of_packages_reaches_everything() {
        assert_eq!(reach(&["agent/src/x.rs", "Cargo.lock"]), Reach { packages: None, stories: None });
    }
}
