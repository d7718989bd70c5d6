//! InputQueue while the workspace prepares to sleep.

use super::*;
use crate::admission::{Intent, Rejection};

const HOUR: Duration = Duration::from_secs(3600);

async fn ready(house: &House) -> (TerminalInfo, Attachment, Log) {
    let terminal = house.script("stty -echo; echo ready; exec cat");
    let owner = AttachOptions {
        size: Some(WindowSize::default()),
        ..attach(&terminal.id, "owner", ViewerStart::Oldest)
    };
    let mut attachment = house.terminals.attach(&owner).expect("attached");
    let mut log = Log::default();
    read_until(&mut attachment, &mut log, "ready").await;
    (terminal, attachment, log)
}

#[tokio::test]
async fn what_is_typed_meanwhile_comes_in_its_order_and_answers_of_an_emulator_are_not_held() {
    let house = House::new();
    let (terminal, mut attachment, mut log) = ready(&house).await;
    let guest = house.attach(&terminal.id, "guest", ViewerStart::Now);
    house.gate.hold(HOUR, false);
    let mut owner = InputQueue::new(attachment.writer());
    let at = log.at;
    owner.input(TerminalInput { kind: InputKind::Reply { at }, ..user(0, b"answer\n") });
    assert!(!owner.waits(), "it is nobody's intent");
    read_until(&mut attachment, &mut log, "answer").await;
    let mut typing = InputQueue::new(guest.writer());
    for (offset, text) in [(0, b"one\n"), (4, b"two\n"), (8, b"six\n")] {
        typing.input(user(offset, text));
    }
    assert_eq!(house.gate.held_intents(), [Intent::Keystroke; 3]);
    // A write that comes beside them, behind bytes that are held, waits too: it is no hole.
    let client = ClientId::new("guest").expect("valid");
    let beside = house.terminals.write(&terminal.id, &client, user(12, b"ten\n"));
    tokio::pin!(beside);
    assert!(futures_util::poll!(beside.as_mut()).is_pending());
    house.gate.resume();
    typing.settle().await;
    assert_eq!(timeout(DEADLINE, beside).await.expect("in time").expect("taken"), 16);
    read_until(&mut attachment, &mut log, "ten").await;
    assert!(log.text().ends_with("one\r\ntwo\r\nsix\r\nten\r\n"), "{}", log.text());
    assert!(!typing.waits());
}

#[tokio::test]
async fn what_is_held_when_the_door_shuts_is_refused_and_never_typed() {
    let house = House::new();
    let (terminal, mut attachment, mut log) = ready(&house).await;
    house.gate.hold(HOUR, true);
    let mut typing = InputQueue::new(attachment.writer());
    typing.input(user(0, b"one\n"));
    typing.input(user(4, b"two\n"));
    house.gate.close().expect("by force");
    typing.settle().await;
    let mut refused = 0;
    while refused < 2 {
        match next(&mut attachment).await.expect("goes on") {
            AttachmentEvent::Rejected(refusal) => {
                assert!(
                    matches!(refusal.error, TerminalError::Rejected(Rejection::Preparing)),
                    "{refusal:?}"
                );
                assert_eq!(refusal.expected, 0, "nothing was taken");
                refused += 1;
            }
            AttachmentEvent::Frame(frame) => log.take(frame),
            AttachmentEvent::Ack { .. } => panic!("acknowledged"),
        }
    }
    let client = ClientId::new("other").expect("valid");
    let late = house.terminals.write(&terminal.id, &client, user(0, b"late\n")).await;
    assert!(matches!(late, Err(TerminalError::Rejected(Rejection::Preparing))), "{late:?}");
    house.terminals.end_all(Duration::from_secs(5)).await;
    while let Some(frame) = next_frame(&mut attachment).await {
        log.take(frame);
    }
    assert!(log.text().ends_with("ready\r\n"), "{}", log.text());
}
