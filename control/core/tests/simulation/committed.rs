//! Checks that the simulation still produces the traces in `tests/stories/traces`. The story
//! `replay` repeats those traces against a real control plane.

use std::{collections::BTreeMap, fs};

use super::sim::{record, traces};

/// Texts of which each occurs in at least one committed trace, so that the replay covers it.
const REPLAYED: [&str; 33] = [
    "> up --quota-awake",
    "> up --capacity-awake",
    "queued queue-position=1",
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
    "> crashes start-agent:before",
    "> crashes start-agent:after",
    "> crashes prepare:before",
    "> crashes prepare:after",
    "> crashes commit:before",
    "> crashes commit:after",
    "> crashes stop-processes:before",
    "> crashes stop-processes:after",
    "> crashes archive:before",
    "> crashes archive:after",
    "> crashes restore:before",
    "> crashes restore:after",
    "> crashes remove-storage:before",
    "> crashes remove-storage:after",
    "> crashes expire-archive:before",
    "> crashes expire-archive:after",
    "> crashes remove-record:before",
    "> crashes remove-record:after",
];

#[test]
fn committed_traces_are_current_and_complete() {
    let traces: BTreeMap<u64, String> = fs::read_dir(traces())
        .expect("the traces exist")
        .flatten()
        .map(|entry| {
            let path = entry.path();
            let seed = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
            (
                seed.expect("a trace has its seed as file name"),
                fs::read_to_string(&path).expect("the trace is readable"),
            )
        })
        .collect();
    for (seed, trace) in &traces {
        let now = record(*seed).unwrap_or_else(|error| panic!("{error}"));
        assert!(
            now == *trace,
            "the trace of seed {seed} is outdated; run cargo xtask simulate --record {seed}\n{now}"
        );
    }
    let missing: Vec<_> =
        REPLAYED.into_iter().filter(|line| traces.values().all(|trace| !trace.contains(line))).collect();
    assert!(missing.is_empty(), "no trace contains {missing:?}");
}
