//! Keystrokes that arrive while a workspace falls asleep. Each is executed once, or rejected with a
//! reason.

use std::{fs, ops::Range, time::Duration};

use futures_util::future::join_all;
use podling_proto::control::v1::Policy;
use podling_tests::{
    InteractiveClient, LineCounts, Podling, argv, idle_timeout_policy, podling::on_pods, seed, wait_until,
    wire_duration,
};

/// The shortest idle timeout that a policy accepts.
const IDLE_TIMEOUT: Duration = Duration::from_secs(1);
/// Delay before a keystroke, in milliseconds. This long after the previous keystroke the workspace
/// begins to fall asleep, because idle time is counted between heartbeats.
const PHASES: Range<u64> = 1500..3500;
/// Number of concurrent workspaces, and of rounds in each. These are a thousand rounds in total.
const PROCESSES: (usize, usize) = (40, 25);
/// The same numbers for pods, which start slowly. A node has capacity for few of them beside the
/// pods of other stories.
const PODS: (usize, usize) = (2, 12);

#[tokio::test(flavor = "multi_thread")]
async fn keystroke_racing_sleep_is_executed_once_or_rejected() {
    let podling = Podling::up().await;
    let (workspaces, rounds) = if on_pods() { PODS } else { PROCESSES };
    let mut rng = fastrand::Rng::with_seed(seed());
    let races = (0..workspaces).map(|n| race(&podling, format!("racer-{n}"), rounds, rng.fork()));
    let mut all = LineCounts::default();
    for counts in join_all(races).await {
        all.acknowledged += counts.acknowledged;
        all.rejected += counts.rejected;
        all.interrupted += counts.interrupted;
        all.epoch_changes += counts.epoch_changes;
    }
    eprintln!("{} keystrokes in {workspaces} workspaces: {all:?}", workspaces * rounds);
    assert_eq!(all.acknowledged as usize, workspaces * rounds);
    // Otherwise no keystroke arrived during a sleep, and the test proved nothing.
    assert!(all.epoch_changes > 0, "{all:?}");
    assert!(on_pods() || all.rejected + all.interrupted > 0, "{all:?}");
}

async fn race(podling: &Podling, name: String, rounds: usize, mut rng: fastrand::Rng) -> LineCounts {
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
        // This delay chooses the time of the keystroke. It does not wait for a condition.
        tokio::time::sleep(Duration::from_millis(rng.u64(PHASES))).await;
        let line = format!("echo {n} >> $HOME/log\r");
        // The line is sent with a unary call, which does not wake, or on the attached stream. If
        // the call is rejected, the line is sent again on the stream.
        if rng.bool() || !writer.write_once(&line).await {
            writer.type_text(&line).await;
        }
        expected += &format!("{n}\n");
        wait_until(&format!("{name} executes line {n}"), || {
            let log = read();
            assert!(expected.starts_with(&log), "{name}: {log:?} must be the beginning of {expected:?}");
            log == expected
        })
        .await;
    }
    assert_eq!(read(), expected);
    writer.counts
}
