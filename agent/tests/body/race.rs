//! Keystrokes that race the sleep, at random phases: each that was acknowledged was executed once, each that was not was not.

use std::{collections::BTreeSet, time::Duration};

use podling_proto::control::v1::directive_result::Result as Answer;
use rustix::process::Signal;
use tokio::time::sleep;

use crate::{
    agent::{Agent, until},
    bed::{Bed, plain},
};

/// Enough for each way it can go, several times; half of them put the agent to sleep and start it again.
const ROUNDS: u32 = 30;
/// Keystroke and commit come within so many milliseconds behind prepare.
const PHASE_MILLIS: u64 = 25;

/// The numbers that the shell has written down.
fn executed(agent: &Agent) -> Vec<u32> {
    let log = std::fs::read_to_string(agent.path("home/log")).unwrap_or_default();
    log.lines().map(|line| line.parse().expect("a whole number")).collect()
}

#[tokio::test]
async fn what_was_acknowledged_was_executed_once_and_nothing_else() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bed = Bed::new(plain).await;
    let shell = bed.create(&[]).await.expect("a shell").id;
    let mut line = bed.attach(&shell).await;
    let (mut acknowledged, mut slept, mut stayed) = (BTreeSet::new(), 0, 0);
    for round in 0..ROUNDS {
        bed.prepare_when_idle().await;
        let mut phase = || Duration::from_millis(random.u64(0..PHASE_MILLIS));
        let (commit_at, type_at) = (phase(), phase());
        let typed = format!("echo {round} >> ~/log\n");
        let (answer, ()) = tokio::join!(
            async {
                sleep(commit_at).await;
                bed.commit().await
            },
            async {
                sleep(type_at).await;
                line.type_in(&typed).await;
            }
        );
        match answer {
            Answer::Declined(_) => {
                stayed += 1;
                let end = line.typed;
                bed.session.beating(line.until("its acknowledgement", |line| line.acked == end)).await;
                let done = until("what was typed", || executed(&bed.agent).contains(&round).then_some(()));
                bed.session.beating(done).await;
                acknowledged.insert(round);
                assert!(line.refused.is_empty(), "{:?}", line.refused);
            }
            Answer::Done(_) => {
                slept += 1;
                while line.hear().await {}
                assert!(line.exit.is_some(), "the end was told");
                if line.acked == line.typed {
                    acknowledged.insert(round);
                }
                // Done means that nothing more is needed of it.
                bed.agent.signal(Signal::KILL);
                bed.agent.ended().await;
                bed.again(plain).await;
                line = bed.attach(&shell).await;
            }
        }
        let executed = executed(&bed.agent);
        assert_eq!(executed, acknowledged.iter().copied().collect::<Vec<_>>(), "round {round}, seed {seed}");
    }
    println!("{slept} sleeps, {stayed} stopped by a keystroke");
    assert!(slept > 0 && stayed > 0, "both ways: {slept} sleeps, {stayed} stopped");
}
