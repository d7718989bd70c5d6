//! Keystrokes that race with the sleep protocol at random times. The shell executes each
//! acknowledged keystroke once, and no keystroke that was not acknowledged.

use std::{collections::BTreeSet, time::Duration};

use podling_proto::control::v1::directive_result::Result as DirectiveOutcome;
use podling_testkit::{AgentProcess, wait_until};
use rustix::process::Signal;
use tokio::time::sleep;

use crate::sleep_harness::{SleepHarness, set_plain_shell};

/// Enough rounds for both outcomes to occur several times.
const ROUNDS: u32 = 30;
/// Upper bound of the random delay of keystroke and commit after prepare.
const MAX_DELAY_MILLIS: u64 = 25;

/// Returns the round numbers that the shell has written to its log.
fn executed(agent: &AgentProcess) -> Vec<u32> {
    agent.home_text("log").lines().map(|line| line.parse().expect("a complete number")).collect()
}

#[tokio::test]
async fn acknowledged_keystrokes_are_executed_exactly_once() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut harness = SleepHarness::new(set_plain_shell).await;
    let shell = harness.create(&[]).await.expect("a shell").id;
    let mut attachment = harness.attach(&shell).await;
    let (mut acknowledged, mut slept, mut stayed) = (BTreeSet::new(), 0, 0);
    for round in 0..ROUNDS {
        harness.prepare_when_idle().await;
        let mut delay = || Duration::from_millis(random.u64(0..MAX_DELAY_MILLIS));
        let (commit_at, type_at) = (delay(), delay());
        let typed = format!("echo {round} >> ~/log\n");
        let (outcome, ()) = tokio::join!(
            async {
                sleep(commit_at).await;
                harness.commit().await
            },
            async {
                sleep(type_at).await;
                attachment.type_text(&typed).await;
            }
        );
        match outcome {
            DirectiveOutcome::Declined(_) => {
                stayed += 1;
                let end = attachment.stream.typed;
                harness
                    .receive_until(&mut attachment, "its acknowledgement", |writer| writer.acked == end)
                    .await;
                let done = wait_until("what was typed", || executed(&harness.agent).contains(&round));
                harness.session.with_heartbeats(done).await;
                acknowledged.insert(round);
                assert!(attachment.refused.is_empty(), "{:?}", attachment.refused);
            }
            DirectiveOutcome::Done(_) => {
                slept += 1;
                while attachment.receive().await {}
                assert!(attachment.exit.is_some(), "the terminal's exit was reported");
                if attachment.acked == attachment.stream.typed {
                    acknowledged.insert(round);
                }
                // After Done the control plane may kill the agent, and no input or output is lost.
                harness.agent.signal(Signal::KILL);
                harness.agent.wait_exit().await;
                harness.restart_agent(set_plain_shell).await;
                attachment = harness.attach(&shell).await;
            }
        }
        let executed = executed(&harness.agent);
        assert_eq!(executed, acknowledged.iter().copied().collect::<Vec<_>>(), "round {round}, seed {seed}");
    }
    println!("{slept} sleeps, {stayed} stopped by a keystroke");
    assert!(slept > 0 && stayed > 0, "both outcomes must occur: {slept} sleeps, {stayed} stopped");
}
