//! `cargo xtask test` runs the whole gate, as `.ci/run` does. With `--quick` it runs only the
//! checks and tests that a change can reach.

use anyhow::Result;

use crate::{
    check,
    cluster::{self, ClusterPlan, NodeTests},
    dependency_cache::DependencyCache,
    gate::{Gate, GateStep},
    reach::Reach,
    simulate,
    stories::{self, STORIES},
    test_programs::{IMAGE_FEATURES, TestPrograms, TestSelection},
    words,
};

/// Argument for the stories of a quick test. More of them run at once than in the gate, because no
/// node runs beside them.
const QUICK_THREADS: &str = "--test-threads=6";

#[derive(Debug, clap::Args)]
pub(crate) struct TestArgs {
    /// Run only format, words, lints, and the tests and stories that the change since `main` can
    /// reach, without images and nodes
    #[arg(long)]
    quick: bool,
}

pub(crate) fn run(args: &TestArgs) -> Result<bool> {
    if args.quick { quick() } else { full() }
}

/// Compiles the tests first, which keeps all processors busy. Then three lanes of tests, which mostly
/// wait, take about the same time beside each other. Compilers and image builders run in a fourth lane
/// at low priority.
fn full() -> Result<bool> {
    let mut gate = Gate::new()?;
    let cache = DependencyCache::open()?;
    cache.iter().for_each(DependencyCache::restore);
    gate.run(check::format())?;
    words::check(&mut gate)?;
    let programs = TestPrograms::build(&mut gate, TestSelection::All)?;
    let mut cluster = cluster::plan(&mut gate, programs.as_ref())?;
    let mut is_prepared = true;
    for step in std::mem::take(&mut cluster.preparation) {
        is_prepared &= gate.run(step)?;
    }
    let (mut unit_tests, mut stories) = (None, None);
    if let Some(programs) = &programs {
        unit_tests = programs.unit_tests(|_| true);
        stories = Some(GateStep::tests(STORIES, programs.stories(&[stories::THREADS])?).behind_unit_tests());
    } else {
        ["unit and property tests", STORIES].iter().for_each(|name| gate.not_run(name));
    }
    if !is_prepared {
        gate.not_run(cluster::EVERYTHING);
        cluster = ClusterPlan::default();
    }
    let compiled = check::lints().into_iter().chain([check::docs(), simulate::step(), doc_examples()]);
    let background = cluster.ide_images.drain(..).chain(compiled);
    let background = background.map(GateStep::in_background).collect();
    let tests = [
        [unit_tests, cluster.take(NodeTests::StoriesOnPods)],
        [stories, cluster.take(NodeTests::Suite)],
        [cluster.take(NodeTests::LeaderElectionAndFaults), None],
    ];
    let tests = tests.into_iter().map(|lane| lane.into_iter().flatten().collect());
    gate.run_lanes(tests.chain([background]).collect())?;
    cache.iter().filter(|_| gate.has_built()).for_each(DependencyCache::save);
    gate.finish()
}

fn quick() -> Result<bool> {
    let mut gate = Gate::new()?;
    DependencyCache::open()?.iter().for_each(DependencyCache::restore);
    let reach = Reach::of_working_tree()?;
    gate.run(check::format())?;
    words::check(&mut gate)?;
    if let Some(programs) = TestPrograms::build(&mut gate, TestSelection::All)? {
        let stories = [reach.story_filters(), vec![QUICK_THREADS]].concat();
        let stories = GateStep::tests(STORIES, programs.stories(&stories)?).behind_unit_tests();
        let unit_tests = programs.unit_tests(|package| reach.has_package(package));
        let [lints, _] = check::lints();
        let lanes = [unit_tests.into_iter().collect(), vec![stories], vec![lints.in_background()]];
        gate.run_lanes(lanes.into())?;
    } else {
        gate.not_run(STORIES);
    }
    gate.finish()
}

fn doc_examples() -> GateStep {
    // With the features of the other builds. Otherwise cargo compiles dependencies again.
    let args = [&["test", "--workspace", "--quiet", "--doc"][..], &IMAGE_FEATURES].concat();
    GateStep::cargo_static("examples in docs", &args)
}
