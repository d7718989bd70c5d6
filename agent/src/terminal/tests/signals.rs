//! Tests that signals reach the remaining processes of a session, also after its leader has exited.

use super::*;
use crate::child::ExitStatus;

/// Returns a script whose job outlives its shell, prints when it catches USR1, and exits.
fn orphaned(job: &str) -> String {
    format!("trap '' HUP; (trap 'echo caught; echo caught >heard; exit' USR1; {job}) & exec true")
}

async fn leader_is_gone(fixture: &TerminalFixture, id: &TerminalId) {
    let terminal = fixture.terminals.find(id).expect("there");
    eventually(|| terminal.leader_gone().then_some(())).await;
}

#[tokio::test]
async fn signal_reaches_job_whose_shell_has_exited() {
    for target in [SignalTarget::Foreground, SignalTarget::Session] {
        let fixture = TerminalFixture::new();
        // The job prints, so the terminal has not ended yet.
        let terminal = fixture.script(&orphaned("while :; do echo x; sleep 0.02; done"));
        let mut attachment = fixture.attach(&terminal.id, "a", ViewerStart::Oldest);
        let mut log = ReceivedOutput::default();
        read_until(&mut attachment, &mut log, "x").await;
        leader_is_gone(&fixture, &terminal.id).await;
        attachment.writer().signal("USR1", target).expect("sent");
        read_until(&mut attachment, &mut log, "caught").await;
        fixture.terminals.close(&terminal.id, DEFAULT_GRACE).await.expect("closed");
    }
}

#[tokio::test]
async fn session_can_be_signalled_after_its_terminal_ended() {
    let fixture = TerminalFixture::new();
    let heard = fixture.workspace.home.path().join("heard");
    let terminal = fixture.script(&orphaned("echo ready; while :; do sleep 0.02; done"));
    assert!(fixture.exit(&terminal.id).await.held_by_background);
    let signal = |target| fixture.terminals.signal(&terminal.id, "USR1", target);
    assert!(matches!(signal(SignalTarget::Foreground), Err(TerminalError::TerminalEnded(_))));
    signal(SignalTarget::Session).expect("the session has processes left");
    eventually(|| heard.exists().then_some(())).await;
    eventually(|| session(&terminal).is_empty().then_some(())).await;
    assert!(
        matches!(signal(SignalTarget::Session), Err(TerminalError::TerminalEnded(_))),
        "the session is empty"
    );
}

#[tokio::test]
async fn pipeline_without_its_leader_is_the_foreground_job() {
    let fixture = TerminalFixture::new();
    let terminal = fixture.open(&["bash", "-c", "set -m; true | sleep 600; echo rc ${PIPESTATUS[1]}"]);
    let mut attachment = fixture.attach(&terminal.id, "a", ViewerStart::Oldest);
    let job = || fixture.terminals.get(&terminal.id).expect("there").foreground;
    eventually(|| (job() == "sleep").then_some(())).await;
    attachment.writer().signal("TERM", SignalTarget::Foreground).expect("sent");
    read_until(&mut attachment, &mut ReceivedOutput::default(), "rc 143").await;
}

#[tokio::test]
async fn close_ends_orphaned_and_stopped_processes() {
    let fixture = TerminalFixture::new();
    let script =
        "trap '' HUP TERM; sleep 600 & (trap '' HUP; exec sleep 600) & pid=$!; kill -STOP $pid; exec true";
    let terminal = fixture.open(&["bash", "-c", script]);
    leader_is_gone(&fixture, &terminal.id).await;
    assert_eq!(session(&terminal).len(), 2);
    let closed = fixture.terminals.close(&terminal.id, Duration::from_millis(50)).await.expect("closed");
    assert_eq!(closed.status, ExitStatus::Code(0));
    assert_eq!(session(&terminal), []);
}
