//! Replays traces of the simulation (`traces/SEED.trace`) against a real `podling up` with real
//! agents, processes, backup store and SIGKILL. At each point of rest, the real workspaces must be
//! in the state that the simulation recorded.
//!
//! `cargo xtask simulate --record SEED` records a trace. A test of the simulation fails if the
//! simulation would now record a stored trace differently.

mod real;

use std::{fs, path::Path};

use podling_tests::trace::{TraceStep, parse};
use real::ReplayTarget;

async fn replay(seed: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("stories/traces/{seed}.trace"));
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let steps = parse(&text).unwrap_or_else(|problem| panic!("{}: {problem}", path.display()));
    let Some((TraceStep::Inject(first), steps)) = steps.split_first() else {
        panic!("{seed}.trace does not begin with an event")
    };
    let mut target = ReplayTarget::up(first).await;
    for (number, step) in steps.iter().enumerate() {
        match step {
            TraceStep::Inject(event) => target.inject(event, steps.get(number + 1)).await,
            TraceStep::Rest(expected) => target.wait_for_rest(expected).await,
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
            assert_eq!(podling_tests::tree::names(&dir), expected);
        }
    };
}

traces! {
    trace_454: 454
    trace_131: 131
    trace_106: 106
    trace_57: 57
}
