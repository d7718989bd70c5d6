//! A keystroke against the sleep: whatever the phase, it is executed once, or was clearly refused.

use std::{fs, ops::Range, time::Duration};

use futures_util::future::join_all;
use podling_proto::control::v1::Policy;
use podling_tests::{
    Podling,
    nights::{sleeps_after, span},
    podling::on_pods,
    proxy::seed,
    typist::{Fates, Typist},
    wait_for,
    work::argv,
};

/// The shortest idle timeout there is.
const IDLE_TIMEOUT: Duration = Duration::from_secs(1);
/// After a keystroke and without another the workspace begins to fall asleep somewhere in here, for its idle time is counted from
/// beat to beat; and it sleeps soon after.
const PHASES: Range<u64> = 1500..3500;
/// Workspaces beside each other, and how often each of them is raced: a thousand times together.
const PROCESSES: (usize, usize) = (40, 25);
/// Pods take their time to start, and a node has room for few: others' stories go on beside this one.
const PODS: (usize, usize) = (2, 12);

#[tokio::test(flavor = "multi_thread")]
async fn a_keystroke_that_races_the_sleep_is_executed_once_or_refused() {
    let podling = Podling::up().await;
    let (workspaces, rounds) = if on_pods() { PODS } else { PROCESSES };
    let mut dice = fastrand::Rng::with_seed(seed());
    let races = (0..workspaces).map(|n| race(&podling, format!("racer-{n}"), rounds, dice.fork()));
    let mut all = Fates::default();
    for fates in join_all(races).await {
        all.taken += fates.taken;
        all.refused += fates.refused;
        all.cut += fates.cut;
        all.woken += fates.woken;
    }
    eprintln!("{} keystrokes in {workspaces} workspaces: {all:?}", workspaces * rounds);
    assert_eq!(all.taken as usize, workspaces * rounds);
    // Else the keystrokes did not meet the sleep at all.
    assert!(all.woken > 0, "{all:?}");
    assert!(on_pods() || all.refused + all.cut > 0, "{all:?}");
}

async fn race(podling: &Podling, name: String, rounds: usize, mut dice: fastrand::Rng) -> Fates {
    let policy = Policy { presence_cap: span(IDLE_TIMEOUT), ..sleeps_after(IDLE_TIMEOUT) };
    let workspace = podling.workspace_with(&name, policy).await;
    let inside = podling.client().of(&workspace.id);
    let terminal = inside.open(argv(&[])).await;
    let mut typist = Typist::new(inside.clone(), &name, &terminal.id);
    let log = podling.home_of(&workspace).join("log");
    let read = || fs::read_to_string(&log).unwrap_or_default();
    let mut expected = String::new();
    for n in 0..rounds {
        typist.attach().await;
        // Not a wait for anything: the moment of a keystroke is what this is about.
        tokio::time::sleep(Duration::from_millis(dice.u64(PHASES))).await;
        let line = format!("echo {n} >> $HOME/log\r");
        // By a call that wakes nothing, or on a stream that is there: what is refused is typed again.
        if dice.bool() || !typist.writes(&line).await {
            typist.types(&line).await;
        }
        expected += &format!("{n}\n");
        wait_for(&format!("{name} executes line {n}"), async || {
            let log = read();
            assert!(expected.starts_with(&log), "{name}: {log:?} is not the beginning of {expected:?}");
            (log == expected).then_some(())
        })
        .await;
    }
    assert_eq!(read(), expected);
    typist.fates
}
