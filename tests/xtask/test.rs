//! `cargo xtask test` runs the whole gate, as `.ci/run` does. With `--quick` it runs only the
//! checks and tests that a change can reach.

use anyhow::Result;

use crate::{
    check,
    cluster::{self, ClusterPlan},
    dependency_cache::DependencyCache,
    gate::{Gate, GateStep},
    reach::Reach,
    simulate,
    stories::{self, STORIES},
    test_programs::{TestPrograms, TestSelection},
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

/// Compiles the tests first, which keeps all processors busy. The static binaries and images are
/// then built in the background beside the unit tests and the stories on processes. Lints, docs, the
/// simulation and the examples in docs are compiled in the background beside the tests on nodes,
/// which mostly wait.
fn full() -> Result<bool> {
    let mut gate = Gate::new()?;
    let cache = DependencyCache::open()?;
    cache.iter().for_each(DependencyCache::restore);
    gate.run(check::format())?;
    words::check(&mut gate)?;
    let programs = TestPrograms::build(&mut gate, TestSelection::All)?;
    let ClusterPlan { preparation, tests } = cluster::plan(&mut gate, programs.as_ref())?;
    let mut stories = Vec::new();
    let mut unit_tests = Vec::new();
    if let Some(programs) = &programs {
        unit_tests.extend(programs.unit_tests(|_| true));
        let step = GateStep::tests(STORIES, programs.stories(&[stories::THREADS])?);
        stories.push(step.behind_unit_tests());
    } else {
        ["unit and property tests", STORIES].iter().for_each(|name| gate.not_run(name));
    }
    let preparation = preparation.into_iter().map(GateStep::in_background).collect();
    let passed = gate.run_lanes(vec![unit_tests, stories, preparation])?;

    let mut lanes = Vec::new();
    match passed[..] {
        [.., true] => lanes.extend(tests),
        _ => gate.not_run(cluster::EVERYTHING),
    }
    let checks = check::lints().into_iter().chain([check::docs(), simulate::step(), doc_examples()]);
    let checks = checks.map(GateStep::in_background).collect();
    lanes.push(checks);
    gate.run_lanes(lanes)?;
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
    GateStep::cargo("examples in docs", &["test", "--workspace", "--quiet", "--doc"], &[])
}
