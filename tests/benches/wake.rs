//! Measures the time from a request to a sleeping workspace until a command has ended, or until a
//! shell's prompt is printed. The gateway wakes the workspace.

use std::time::Instant;

use anyhow::Result;
use podling_proto::control::v1::State;
use podling_tests::{Podling, Workspace};

use crate::{
    prompt,
    report::{Goal, Report, Row},
    stats::Samples,
};

const ROUNDS: usize = 15;

pub(crate) async fn run(podling: &Podling, report: &mut Report) -> Result<()> {
    let workspace = podling.workspace("sleeper").await;
    let (cli, inside) = (podling.cli(), podling.client().for_workspace(&workspace.id));
    let (mut commands, mut prompts, mut bare) = (Samples::new(), Samples::new(), Samples::new());
    for _ in 0..ROUNDS {
        bare.push(prompt::bare_shell()?);
        put_to_sleep(podling, &workspace).await;
        let begun = Instant::now();
        cli.run(&["run", &workspace.name, "--", "true"]).await.ok();
        commands.push(begun.elapsed().as_secs_f64() * 1e3);
        put_to_sleep(podling, &workspace).await;
        let begun = Instant::now();
        prompt::open_shell(&inside).await?;
        prompts.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    let goal = Goal::AtMost(100.0);
    let command = Row::new("asleep → `podling run NAME -- true` has ended".into(), "ms", &commands);
    report.row(command.absolute(goal));
    let prompt = Row::new("asleep → a shell's prompt, through the gateway".into(), "ms", &prompts);
    report.row(prompt.peer("the same shell on a raw PTY", &bare).absolute(goal));
    Ok(())
}

async fn put_to_sleep(podling: &Podling, workspace: &Workspace) {
    podling.cli().run(&["sleep", &workspace.name, "--force"]).await.ok();
    podling.wait_for_state(workspace, State::Asleep).await;
}
