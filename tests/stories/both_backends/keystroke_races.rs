//! A keystroke against the sleep: whatever the phase, it is executed once, or was clearly refused.

use std::{fs, ops::Range, time::Duration};

use futures_util::future::join_all;
use podling_proto::control::v1::Policy;
use podling_tests::{
    Podling,
    client_helpers::argv,
    interactive_client::{InteractiveClient, LineCounts},
    podling::on_pods,
    proxy::seed,
    sleep_helpers::{idle_timeout_policy, wire_duration},
    wait_for,
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
    let mut all = LineCounts::default();
    for counts in join_all(races).await {
        all.acknowledged += counts.acknowledged;
        all.rejected += counts.rejected;
        all.interrupted += counts.interrupted;
        all.epoch_changes += counts.epoch_changes;
    }
    eprintln!("{} keystrokes in {workspaces} workspaces: {all:?}", workspaces * rounds);
    assert_eq!(all.acknowledged as usize, workspaces * rounds);
    // Else the keystrokes did not meet the sleep at all.
    assert!(all.epoch_changes > 0, "{all:?}");
    assert!(on_pods() || all.rejected + all.interrupted > 0, "{all:?}");
}

async fn race(podling: &Podling, name: String, rounds: usize, mut dice: fastrand::Rng) -> LineCounts {
    let policy = Policy { presence_cap: wire_duration(IDLE_TIMEOUT), ..idle_timeout_policy(IDLE_TIMEOUT) };
    let workspace = podling.workspace_with_policy(&name, policy).await;
    let inside = podling.client().for_workspace(&workspace.id);
    let terminal = inside.open(argv(&[])).await;
    let mut writer = InteractiveClient::new(inside.clone(), &name, &terminal.id);
    let log = podling.home_dir(&workspace).join("log");
    let read = || fs::read_to_string(&log).unwrap_or_default();
    let mut expected = String::new();
    for n in 0..rounds {
        writer.attach().await;
        // Not a wait for anything: the moment of a keystroke is what this is about.
        tokio::time::sleep(Duration::from_millis(dice.u64(PHASES))).await;
        let line = format!("echo {n} >> $HOME/log\r");
        // By a call that wakes nothing, or on a stream that is there: what is refused is typed again.
        if dice.bool() || !writer.write_once(&line).await {
            writer.type_text(&line).await;
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
    writer.counts
}
