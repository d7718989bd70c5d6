//! Tests of input while the workspace prepares to sleep.

use super::*;
use crate::admission::{Intent, Rejection};

const HOUR: Duration = Duration::from_secs(3600);

async fn ready(fixture: &TerminalFixture) -> (TerminalInfo, Attachment, ReceivedOutput) {
    let terminal = fixture.script("stty -echo; echo ready; exec cat");
    let owner = ViewerOptions {
        size: Some(WindowSize::default()),
        ..attach(&terminal.id, "owner", ViewerStart::Oldest)
    };
    let mut attachment = fixture.terminals.attach(&owner).expect("attached");
    let mut log = ReceivedOutput::default();
    read_until(&mut attachment, &mut log, "ready").await;
    (terminal, attachment, log)
}

#[tokio::test]
async fn held_input_keeps_its_order_and_replies_are_not_held() {
    let fixture = TerminalFixture::new();
    let (terminal, mut attachment, mut log) = ready(&fixture).await;
    let guest = fixture.attach(&terminal.id, "guest", ViewerStart::Now);
    fixture.workspace.gate.hold(HOUR, false);
    let mut owner = InputQueue::new(attachment.writer());
    let at = log.at;
    owner.input(TerminalInput { kind: InputKind::Reply { at }, ..user(0, b"answer\n") });
    assert!(!owner.is_holding(), "an automatic reply is not held");
    read_until(&mut attachment, &mut log, "answer").await;
    let mut typing = InputQueue::new(guest.writer());
    for (offset, text) in [(0, b"one\n"), (4, b"two\n"), (8, b"six\n")] {
        typing.input(user(offset, text));
    }
    assert_eq!(fixture.workspace.gate.held_intents(), [Intent::Keystroke; 3]);
    // A concurrent write after held bytes is held too, instead of rejected as a gap.
    let client = ClientId::new("guest").expect("valid");
    let beside = fixture.terminals.write(&terminal.id, &client, user(12, b"ten\n"));
    tokio::pin!(beside);
    assert!(futures_util::poll!(beside.as_mut()).is_pending());
    fixture.workspace.gate.resume();
    typing.drain().await;
    assert_eq!(timeout(DEADLINE, beside).await.expect("in time").expect("taken"), 16);
    read_until(&mut attachment, &mut log, "ten").await;
    assert!(log.text().ends_with("one\r\ntwo\r\nsix\r\nten\r\n"), "{}", log.text());
    assert!(!typing.is_holding());
}

#[tokio::test]
async fn held_input_is_rejected_when_the_sleep_commits() {
    let fixture = TerminalFixture::new();
    let (terminal, mut attachment, mut log) = ready(&fixture).await;
    fixture.workspace.gate.hold(HOUR, true);
    let mut typing = InputQueue::new(attachment.writer());
    typing.input(user(0, b"one\n"));
    typing.input(user(4, b"two\n"));
    fixture.workspace.gate.close().expect("by force");
    typing.drain().await;
    let mut refused = 0;
    while refused < 2 {
        match next(&mut attachment).await.expect("goes on") {
            AttachmentEvent::Rejected(rejection) => {
                assert!(
                    matches!(rejection.error, TerminalError::Rejected(Rejection::Preparing)),
                    "{rejection:?}"
                );
                assert_eq!(rejection.expected, 0, "no input was accepted");
                refused += 1;
            }
            AttachmentEvent::Frame(frame) => log.take(frame),
            AttachmentEvent::Ack { .. } => panic!("acknowledged"),
        }
    }
    let client = ClientId::new("other").expect("valid");
    let late = fixture.terminals.write(&terminal.id, &client, user(0, b"late\n")).await;
    assert!(matches!(late, Err(TerminalError::Rejected(Rejection::Preparing))), "{late:?}");
    fixture.terminals.end_all(Duration::from_secs(5)).await;
    while let Some(frame) = next_frame(&mut attachment).await {
        log.take(frame);
    }
    assert!(log.text().ends_with("ready\r\n"), "{}", log.text());
}
