//! What a change can reach (`cargo xtask test --quick`): the crates whose files differ from `main`, the crates that depend on those, and
//! the stories.
//!
//! The rules, from the names of the changed files alone:
//! - Prose (`*.md`), benchmarks and what only a cluster uses (`deploy`, `images`, `tests/cluster`) reach nothing that runs here.
//! - A file of a crate reaches the tests of the crate and of every crate that depends on it.
//! - A file below a crate's `tests` folder reaches the tests of that crate alone.
//! - Every other file of a crate of the product reaches all stories, for they run the binaries.
//! - A story's file reaches the stories of its module; the harness (`tests/src`), all stories.
//! - Every other file (`Cargo.lock`, `.cargo`, …) reaches everything; so does a change whose base is not known.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::Result;

use crate::{program, test_programs::workspace_packages};

/// Where the branch may have begun, the likeliest first.
const BASES: [&str; 3] = ["main", "origin/main", "origin/HEAD"];
/// The harness and its programs: stories, the suite, benchmarks.
const HARNESS: &str = "tests";
/// What runs nowhere but in a cluster, or not at all.
const OUT_OF_REACH: [&str; 6] =
    ["deploy/", "images/", "docs/", "tests/cluster/", "tests/benches/", "LICENSE"];
/// Stories about the files of the repository: any change may break them, and they take no time.
const ALWAYS: &str = "repository::";

/// What can be reached.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reach {
    /// Folders of packages, from the root; `None` is all of them.
    packages: Option<BTreeSet<PathBuf>>,
    /// Prefixes of stories' names; `None` is all of them.
    stories: Option<BTreeSet<String>>,
}

/// A package of the workspace: its folder from the root, and those of the packages that it depends on.
type Dependencies = BTreeMap<PathBuf, BTreeSet<PathBuf>>;

impl Reach {
    /// Of what differs from `main` here, with what is not committed. On `main` itself, with nothing changed, it is everything.
    pub(crate) fn of_working_tree() -> Result<Self> {
        let files = changed_files().unwrap_or_default();
        if files.is_empty() {
            println!("nothing is known to differ from {}: everything is tested", BASES[0]);
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
            // The innermost package that holds it.
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
                    // xtask is no part of what stories run.
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

    pub(crate) fn has_package(&self, folder: &Path) -> bool {
        let folder = folder.strip_prefix(program::root()).unwrap_or(folder);
        self.packages.as_ref().is_none_or(|packages| packages.contains(folder))
    }

    /// Filters for the stories' program; none where all stories are reached.
    pub(crate) fn story_filters(&self) -> Vec<&str> {
        self.stories.iter().flatten().map(String::as_str).collect()
    }
}

/// Names of files that differ from where this branch began. `None` where git or a base is missing.
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

/// The stories of a module: `everywhere/nights.rs` and `replay/real.rs` are `everywhere::nights::` and `replay::real::`. `None` for what
/// is no module's own file.
fn module(story: &Path) -> Option<String> {
    let path = story.with_extension("");
    let words: Vec<_> = path.iter().filter_map(|word| word.to_str()).collect();
    (words != ["main"] && story.extension().is_some_and(|extension| extension == "rs"))
        .then(|| words.join("::") + "::")
}

/// The package and every package that depends on it.
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

/// Of all packages of the workspace, with those for their tests alone.
fn dependencies() -> Result<Dependencies> {
    let root = program::root();
    let inside = |folder: &Path| folder.strip_prefix(&root).ok().map(Path::to_owned);
    let mut all = Dependencies::new();
    for package in workspace_packages()? {
        let manifest = package["manifest_path"].as_str().map(Path::new).and_then(Path::parent);
        let on = package["dependencies"].as_array().cloned().unwrap_or_default();
        let on = on.iter().filter_map(|dependency| inside(Path::new(dependency["path"].as_str()?)));
        if let Some(folder) = manifest.and_then(inside) {
            all.insert(folder, on.collect());
        }
    }
    // Stories run the binaries, which the harness's manifest does not name.
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
            package("tests", &["agent", "control", "cli"]),
            package("tests/xtask", &[]),
        ]);
        Reach::of(&files, &dependencies)
    }

    fn packages(reach: &Reach) -> Vec<String> {
        reach.packages.iter().flatten().map(|package| package.display().to_string()).collect()
    }

    #[test]
    fn prose_reaches_only_what_reads_it() {
        let reach = reach(&["README.md", "deploy/crds/x.yaml", "tests/cluster/node"]);
        assert!(packages(&reach).is_empty());
        assert_eq!(reach.story_filters(), [ALWAYS]);
    }

    #[test]
    fn product_reaches_dependents_and_all_stories() {
        let core = reach(&["control/core/src/quota.rs"]);
        assert_eq!(packages(&core), ["cli", "control", "control/core", "tests"]);
        assert!(core.story_filters().is_empty(), "no filter is all of them");
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
        let one = reach(&["tests/stories/everywhere/nights.rs", "tests/stories/first_run.rs"]);
        assert_eq!(one.story_filters(), ["everywhere::nights::", "first_run::", ALWAYS]);
        assert!(reach(&["tests/stories/main.rs"]).story_filters().is_empty());
        assert!(reach(&["tests/stories/traces/177"]).story_filters().is_empty());
        assert!(reach(&["tests/src/wait.rs"]).story_filters().is_empty());
    }

    #[test]
    fn gate_itself_reaches_no_story() {
        let reach = reach(&["tests/xtask/gate.rs"]);
        assert_eq!(packages(&reach), ["tests/xtask"]);
        assert_eq!(reach.story_filters(), [ALWAYS]);
    }

    #[test]
    fn what_belongs_to_no_package_reaches_everything() {
        assert_eq!(reach(&["agent/src/x.rs", "Cargo.lock"]), Reach { packages: None, stories: None });
    }
}
