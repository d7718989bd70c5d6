//! Measures the time to create a workspace, open a shell in it and read the prompt.

use std::{io::Read, time::Instant};

use anyhow::{Context, Result};
use podling_proto::control::v1::{CreateWorkspaceRequest, DeleteWorkspaceRequest};
use podling_tests::{Client, Podling};

use crate::{
    attached::{BenchAttachment, contains},
    raw_pty::RawPty,
    report::{Goal, Report, Row},
    stats::Samples,
};

const ROUNDS: usize = 20;
/// Prompt of the shell, which differs from all its other output.
const PROMPT: &str = "ready-for-you> ";
const SHELL: &str = "PS1='ready-for-you> ' exec bash --norc --noprofile -i";

pub(crate) async fn run(podling: &Podling, report: &mut Report) -> Result<()> {
    let (mut ours, mut bare) = (Samples::new(), Samples::new());
    for round in 0..ROUNDS {
        bare.push(bare_shell()?);
        ours.push(created_workspace(podling, &format!("prompt-{round}")).await?);
    }
    let row = Row::new("create a workspace → its shell's prompt, through the gateway".into(), "ms", &ours);
    report.row(row.peer("the same shell on a raw PTY", &bare).absolute(Goal::AtMost(50.0)));
    Ok(())
}

/// Returns the time until the shell on a raw PTY has printed its prompt, in milliseconds.
pub(crate) fn bare_shell() -> Result<f64> {
    let start = Instant::now();
    let mut pty = RawPty::spawn(SHELL)?;
    let (mut output, mut buffer) = (Vec::new(), [0; 4096]);
    while !contains(&output, PROMPT.as_bytes()) {
        let n = pty.read(&mut buffer)?;
        output.extend_from_slice(&buffer[..n]);
    }
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

async fn created_workspace(podling: &Podling, name: &str) -> Result<f64> {
    let client = podling.client();
    let start = Instant::now();
    let request = CreateWorkspaceRequest { name: name.to_owned(), ..Default::default() };
    let made = client.workspaces().create(request).await?.into_inner().workspace.context("no workspace")?;
    open_shell(&podling.client().for_workspace(&made.id)).await?;
    let took = start.elapsed().as_secs_f64() * 1e3;
    client.workspaces().delete(DeleteWorkspaceRequest { workspace: made.id, discard: true }).await?;
    Ok(took)
}

/// Opens the shell in a workspace and waits for its prompt.
pub(crate) async fn open_shell(inside: &Client) -> Result<()> {
    let terminal = crate::attached::create_terminal(inside, SHELL).await?;
    BenchAttachment::open(inside, &terminal, false).await?.read_until(PROMPT).await
}
