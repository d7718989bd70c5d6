//! What the simulation says of Podling, and what Podling does: traces of it (`traces/SEED.trace`) happen to a real `podling up`, with
//! agents, processes, a backup store and kill -9 that are real, and at every point of rest the two are the same.
//!
//! A trace is made by `cargo xtask simulate --record SEED`; a test of the simulation finds one that it would not record any more.

mod real;

use std::{fs, path::Path};

use podling_tests::trace::{TraceStep, parse};
use real::ReplayTarget;

async fn replay(seed: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("stories/traces/{seed}.trace"));
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let steps = parse(&text).unwrap_or_else(|problem| panic!("{}: {problem}", path.display()));
    let Some((TraceStep::Inject(first), steps)) = steps.split_first() else { panic!("it is empty") };
    let mut real = ReplayTarget::up(first).await;
    for (number, step) in steps.iter().enumerate() {
        match step {
            TraceStep::Inject(event) => real.happens(event, steps.get(number + 1)).await,
            TraceStep::Rest(expected) => real.comes_to(expected).await,
        }
    }
}

macro_rules! traces {
    ($($name:ident: $seed:literal)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                replay(stringify!($seed)).await;
            }
        )*

        #[test]
        fn every_trace_is_replayed() {
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("stories/traces");
            let mut expected = vec![$(concat!(stringify!($seed), ".trace")),*];
            expected.sort_unstable();
            assert_eq!(podling_tests::podling::names(&dir), expected);
        }
    };
}

traces! {
    trace_177: 177
    trace_311: 311
    trace_225: 225
    trace_81: 81
    trace_69: 69
}
