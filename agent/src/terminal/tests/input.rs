//! Tests of input to terminals.

use std::time::Instant;

use crate::admission::Intent;

use super::*;

/// Program that reads raw bytes and prints their number and checksum.
const COUNT: &str = "stty raw -echo; echo ready; head -c 200000 | cksum; stty sane";

#[tokio::test]
async fn overlapping_input_arrives_once_and_in_order() {
    let fixture = TerminalFixture::new();
    let terminal = fixture.script(COUNT);
    let mut attachment = fixture.attach(&terminal.id, "a", ViewerStart::Oldest);
    let mut log = ReceivedOutput::default();
    read_until(&mut attachment, &mut log, "ready").await;
    let all: Vec<u8> = (0..200_000_u32).map(|i| b'a' + (i % 23) as u8).collect();
    let writer = attachment.writer();
    // The messages overlap, as after a connection that broke many times.
    let mut at = 0_usize;
    while at < all.len() {
        let from = at.saturating_sub(7);
        let to = (at + 5000).min(all.len());
        writer.input(user(from as u64, &all[from..to]));
        at = to;
    }
    let mut acked = 0;
    while acked < all.len() as u64 {
        match next(&mut attachment).await.expect("goes on") {
            AttachmentEvent::Ack { next, .. } => {
                assert!(next > acked);
                acked = next;
            }
            AttachmentEvent::Frame(frame) => log.take(frame),
            AttachmentEvent::Rejected(rejection) => panic!("{rejection:?}"),
        }
    }
    while let Some(frame) = next_frame(&mut attachment).await {
        log.take(frame);
    }
    let expected = std::process::Command::new("cksum")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn();
    let mut child = expected.expect("cksum");
    std::io::Write::write_all(child.stdin.as_mut().expect("piped"), &all).expect("written");
    let sum = String::from_utf8(child.wait_with_output().expect("output").stdout).expect("text");
    assert!(log.text().contains(sum.trim()), "{:?} has {sum:?}", log.text());
}

#[tokio::test]
async fn stream_continues_after_rejected_holes_and_stale_epochs() {
    let fixture = TerminalFixture::new();
    let terminal = fixture.open(&["cat"]);
    let mut attachment = fixture.attach(&terminal.id, "a", ViewerStart::Oldest);
    let writer = attachment.writer();
    writer.input(user(0, b"one"));
    writer.input(user(9, b"x"));
    writer.input(TerminalInput { epoch: 6, ..user(3, b"x") });
    writer.input(user(0, b"one"));
    let (mut refused, mut acks) = (Vec::new(), 0);
    while refused.len() < 2 || acks < 1 {
        match next(&mut attachment).await.expect("goes on") {
            AttachmentEvent::Rejected(rejection) => refused.push(rejection),
            AttachmentEvent::Ack { epoch, next } => {
                assert_eq!((epoch, next), (7, 3));
                acks += 1;
            }
            AttachmentEvent::Frame(_) => {}
        }
    }
    assert!(matches!(refused[0].error, TerminalError::InputGap { expected: 3 }));
    assert!(matches!(refused[1].error, TerminalError::StaleEpoch { epoch: 7 }));
    assert!(refused.iter().all(|rejection| rejection.expected == 3));
    let client = ClientId::new("a").expect("valid");
    assert_eq!(fixture.terminals.write(&terminal.id, &client, user(3, b"two\n")).await.expect("written"), 7);
    let mut log = ReceivedOutput::default();
    let mut reader = fixture.attach(&terminal.id, "b", ViewerStart::Oldest);
    read_until(&mut reader, &mut log, "onetwo\r\nonetwo\r\n").await;
}

#[tokio::test]
async fn program_that_reads_no_input_blocks_nothing_else() {
    let fixture = TerminalFixture::new();
    let deaf = fixture.script("stty raw -echo; i=0; while :; do echo tick $i; i=$((i+1)); sleep 0.05; done");
    let other = fixture.open(&["cat"]);
    let mut attachment = fixture.attach(&deaf.id, "a", ViewerStart::Oldest);
    let mut log = ReceivedOutput::default();
    read_until(&mut attachment, &mut log, "tick 1").await;
    let writer = attachment.writer();
    let paste = vec![b'x'; 1 << 20];
    writer.input(user(0, &paste));
    writer.input(user(1 << 20, &paste));
    writer.input(user(2 << 20, b"more"));
    let rejection = loop {
        match next(&mut attachment).await.expect("goes on") {
            AttachmentEvent::Rejected(rejection) => break rejection,
            AttachmentEvent::Frame(frame) => log.take(frame),
            AttachmentEvent::Ack { next, .. } => {
                assert!(next < 1 << 20, "input was acknowledged before the PTY took it")
            }
        }
    };
    assert!(
        matches!(rejection.error, TerminalError::InputFull { expected } if expected == 2 << 20),
        "{rejection:?}"
    );
    read_until(&mut attachment, &mut log, "tick 10").await;
    let client = ClientId::new("b").expect("valid");
    fixture.terminals.write(&other.id, &client, user(0, b"hello\n")).await.expect("the neighbour is served");
    // A signal does not pass through the input queue.
    writer.signal("KILL", SignalTarget::Session).expect("sent");
    while let Some(frame) = next_frame(&mut attachment).await {
        log.take(frame);
    }
    assert!(log.exit.is_some());
    writer.input(user(1 << 20, b"late"));
}

#[tokio::test]
async fn replies_are_accepted_from_size_owner_to_live_queries_only() {
    let fixture = TerminalFixture::new();
    let terminal = fixture.script("stty -echo; echo ready; cat");
    let owner = ViewerOptions {
        size: Some(WindowSize { rows: 30, cols: 100 }),
        ..attach(&terminal.id, "owner", ViewerStart::Oldest)
    };
    let mut owner = fixture.terminals.attach(&owner).expect("attached");
    let guest = ViewerOptions {
        size: Some(WindowSize { rows: 10, cols: 40 }),
        ..attach(&terminal.id, "guest", ViewerStart::Oldest)
    };
    let mut log = ReceivedOutput::default();
    read_until(&mut owner, &mut log, "ready").await;
    let guest = fixture.terminals.attach(&guest).expect("attached");
    let reply = |offset, at, data| TerminalInput { epoch: 7, offset, data, kind: InputKind::Reply { at } };
    guest.writer().input(reply(0, 1000, b"guest\n"));
    owner.writer().input(reply(0, 0, b"replayed\n"));
    owner.writer().input(reply(9, log.at, b"answer\n"));
    let mut acked = 0;
    while !log.text().contains("answer\r\n") || acked < 16 {
        match next(&mut owner).await.expect("goes on") {
            AttachmentEvent::Ack { next, .. } => acked = next,
            AttachmentEvent::Frame(frame) => log.take(frame),
            AttachmentEvent::Rejected(rejection) => panic!("{rejection:?}"),
        }
    }
    assert!(!log.text().contains("guest") && !log.text().contains("replayed"), "{}", log.text());
    assert_eq!(
        fixture.workspace.gate.last_admitted(Intent::Keystroke),
        None,
        "an automatic answer is no activity"
    );
    owner.writer().input(user(16, b"typed\n"));
    read_until(&mut owner, &mut log, "typed").await;
    assert!(fixture.workspace.gate.last_admitted(Intent::Keystroke).is_some());
}

#[tokio::test]
async fn typing_client_owns_the_size_and_all_viewers_see_it() {
    let fixture = TerminalFixture::new();
    let terminal = fixture
        .script("trap 'stty size' WINCH; stty -echo; echo ready; while :; do read x && stty size; done");
    let sized = |client, rows| ViewerOptions {
        size: Some(WindowSize { rows, cols: 100 }),
        ..attach(&terminal.id, client, ViewerStart::Oldest)
    };
    let mut laptop = fixture.terminals.attach(&sized("laptop", 50)).expect("attached");
    let mut log = ReceivedOutput::default();
    read_until(&mut laptop, &mut log, "ready").await;
    let phone = fixture.terminals.attach(&sized("phone", 20)).expect("attached");
    assert_eq!(fixture.terminals.get(&terminal.id).expect("there").size.rows, 50);
    phone.writer().input(user(0, b"\n"));
    let resized = loop {
        let frame = next_frame(&mut laptop).await.expect("goes on");
        if let FrameKind::Resized(size) = frame.kind {
            break size;
        }
        log.take(frame);
    };
    assert_eq!(resized.rows, 20);
    read_until(&mut laptop, &mut log, "20 100").await;
    drop(phone);
    assert_eq!(fixture.terminals.get(&terminal.id).expect("there").size.rows, 50, "the owner left");
    let client = ClientId::new("stranger").expect("valid");
    let size = WindowSize { rows: 9, cols: 9 };
    assert_eq!(
        fixture.terminals.resize(&terminal.id, &client, size, false).expect("asked"),
        (WindowSize { rows: 50, cols: 100 }, false)
    );
}

#[tokio::test]
async fn flood_in_one_terminal_does_not_delay_echo_of_another() {
    let fixture = TerminalFixture::new();
    let flood = fixture.open(&[
        "sh",
        "-c",
        "yes 'a line of a flood that never ends, or so it seems to those who watch it'",
    ]);
    let echo = fixture.script("stty raw -echo; echo ready; cat");
    // The flood has a viewer, and snapshots of it are requested now and then.
    let mut watchers = JoinSet::new();
    let mut flooded = fixture.attach(&flood.id, "w", ViewerStart::Oldest);
    watchers.spawn(async move { while flooded.next().await.is_some() {} });
    let mut attachment = fixture.attach(&echo.id, "a", ViewerStart::Oldest);
    let mut log = ReceivedOutput::default();
    read_until(&mut attachment, &mut log, "ready").await;
    let mut times = Vec::new();
    for i in 0..400_u64 {
        if i % 40 == 0 {
            let mut snapshot = fixture.attach(&flood.id, "p", ViewerStart::Screen);
            watchers.spawn(async move {
                for _ in 0..3 {
                    let _ = snapshot.next().await;
                }
            });
        }
        let began = Instant::now();
        attachment.writer().input(user(i, b"k"));
        let before = log.at;
        while log.at == before {
            let frame = next_frame(&mut attachment).await.expect("goes on");
            log.take(frame);
        }
        times.push(began.elapsed());
    }
    times.sort();
    let (p50, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    println!("echo beside a flood: p50 {p50:?}, p99 {p99:?}");
    // Not a benchmark: this is a debug build on a busy machine. Behind a whole flood an echo would
    // never arrive.
    assert!(p50 < Duration::from_millis(200), "p50 {p50:?}");
    assert!(fixture.terminals.output_bytes() > 1_000_000);
}
