//! The traces that are replayed against the real thing (`tests/stories/traces`) are still what the simulation gives.

use std::{collections::BTreeMap, fs};

use super::sim::{record, traces};

/// What the committed traces have between them: what the replay is for.
const REPLAYED: [&str; 33] = [
    "> up --quota-awake",
    "> up --capacity-awake",
    "queued place=1",
    "> write",
    "> sleep",
    "> wake",
    "> delete",
    "> restore",
    "> discard",
    "idle-timeout 1s",
    "archive-after 1s",
    "keep-archives 1s",
    "> kill-agent",
    "> fails",
    "gone",
    "> dies start:before",
    "> dies start:after",
    "> dies prepare:before",
    "> dies prepare:after",
    "> dies commit:before",
    "> dies commit:after",
    "> dies stop:before",
    "> dies stop:after",
    "> dies archive:before",
    "> dies archive:after",
    "> dies restore:before",
    "> dies restore:after",
    "> dies remove:before",
    "> dies remove:after",
    "> dies expire:before",
    "> dies expire:after",
    "> dies forget:before",
    "> dies forget:after",
];

#[test]
fn the_traces_that_are_replayed_are_what_it_gives_and_have_everything() {
    let traces: BTreeMap<u64, String> = fs::read_dir(traces())
        .expect("the traces are there")
        .flatten()
        .map(|entry| {
            let path = entry.path();
            let seed = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
            (seed.expect("a trace is named for its seed"), fs::read_to_string(&path).expect("it can be read"))
        })
        .collect();
    for (seed, trace) in &traces {
        let now = record(*seed).unwrap_or_else(|why| panic!("{why}"));
        assert!(
            now == *trace,
            "seed {seed} gives another trace now: cargo xtask simulate --record {seed}\n{now}"
        );
    }
    let missing: Vec<_> =
        REPLAYED.into_iter().filter(|what| traces.values().all(|trace| !trace.contains(what))).collect();
    assert!(missing.is_empty(), "no trace has {missing:?}");
}
