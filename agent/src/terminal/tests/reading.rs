//! Tests of viewers that start at every kind of position.

use std::time::Instant;

use super::*;

/// Prints 50 MB in numbered lines.
const MEGABYTES_50: &str = "stty -opost; \
     seq -f 'line %.0f of a long listing that goes on and on and on until it ends' 700000 | head -c 50000000";

fn reference() -> Vec<u8> {
    let mut all = Vec::with_capacity(52_000_000);
    for i in 1..=700_000 {
        all.extend(
            format!("line {i} of a long listing that goes on and on and on until it ends\n").into_bytes(),
        );
    }
    all.truncate(50_000_000);
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lossless_viewers_get_all_bytes_beside_a_stalled_viewer() {
    let fixture = TerminalFixture::new();
    let terminal = fixture.script(&format!("sleep 0.3; {MEGABYTES_50}"));
    let lossless =
        |client| ViewerOptions { lossless: true, ..attach(&terminal.id, client, ViewerStart::Oldest) };
    let one = fixture.terminals.attach(&lossless("one")).expect("attached");
    let other = fixture.terminals.attach(&lossless("other")).expect("attached");
    // This viewer reads two frames, and then nothing until the others have finished.
    let mut stalled = fixture.attach(&terminal.id, "stalled", ViewerStart::Oldest);
    let mut late = ReceivedOutput::default();
    late.take(next_frame(&mut stalled).await.expect("started"));
    late.take(next_frame(&mut stalled).await.expect("data"));
    let mut readers = JoinSet::new();
    readers.spawn(read_all(one));
    readers.spawn(read_all(other));
    let expected = reference();
    while let Some(log) = readers.join_next().await {
        let log = log.expect("no panic");
        assert_eq!(log.gaps, 0);
        assert_eq!(log.bytes.len(), expected.len());
        assert!(log.bytes == expected, "byte for byte");
    }
    let mut snapshots = 0;
    while let Some(frame) = next_frame(&mut stalled).await {
        snapshots += usize::from(matches!(frame.kind, FrameKind::Screen(_)));
        late.take(frame);
    }
    assert!(late.gaps > 40_000_000, "evicted bytes must be a gap: {}", late.gaps);
    assert_eq!(snapshots, 1, "the gap is followed by one snapshot");
    assert!(late.exit.is_some());
}

#[tokio::test]
async fn resuming_viewer_misses_nothing() {
    let fixture = TerminalFixture::new();
    let terminal = fixture.script("i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; exit 0");
    let mut log = ReceivedOutput::default();
    let mut cuts = 0;
    while log.exit.is_none() {
        let from =
            if cuts == 0 { ViewerStart::Oldest } else { ViewerStart::Position { epoch: 7, offset: log.at } };
        let mut attachment = fixture.attach(&terminal.id, "a", from);
        for _ in 0..fastrand::usize(1..6) {
            let Some(frame) = next_frame(&mut attachment).await else { break };
            log.take(frame);
        }
        cuts += 1;
    }
    let expected: String = (0..3000).map(|i| format!("line {i}\r\n")).collect();
    assert_eq!(log.text(), expected);
    assert_eq!(log.gaps, 0);
    assert!(cuts > 1);
}

#[tokio::test]
async fn evicted_stale_and_future_positions_are_distinguished() {
    let fixture = TerminalFixture::with(AgentPolicy { byte_log_bytes: 8 * 1024, ..AgentPolicy::default() });
    let terminal = fixture.script("seq 10000; exit 0");
    fixture.exit(&terminal.id).await;
    let info = fixture.terminals.get(&terminal.id).expect("kept");
    assert_eq!(info.next - info.oldest, 8 * 1024);
    // A stale epoch: output starts at the oldest byte of the current one.
    let mut old = fixture.attach(&terminal.id, "a", ViewerStart::Position { epoch: 6, offset: 99_999_999 });
    let frame = next_frame(&mut old).await.expect("started");
    assert!(matches!(frame.kind, FrameKind::Started { .. }));
    assert_eq!((frame.epoch, frame.offset), (7, info.oldest));
    // An evicted position: a gap, then everything in the log.
    let mut log = ReceivedOutput { at: 10, bytes: vec![0; 10], ..ReceivedOutput::default() };
    let mut gone = fixture.attach(&terminal.id, "b", ViewerStart::Position { epoch: 7, offset: 10 });
    while let Some(frame) = next_frame(&mut gone).await {
        log.take(frame);
    }
    assert_eq!(log.gaps, info.oldest - 10);
    assert!(log.text().ends_with("9999\r\n10000\r\n"));
    // A position after the end.
    let beyond = ViewerStart::Position { epoch: 7, offset: info.next + 1 };
    let refused = fixture.terminals.attach(&attach(&terminal.id, "c", beyond)).expect_err("beyond");
    assert!(matches!(refused, TerminalError::BadOffset { next } if next == info.next));
}

#[tokio::test]
async fn watch_serves_terminals_in_turn_with_separate_credit() {
    let fixture = TerminalFixture::new();
    let flood = fixture.open(&["yes", "flood"]);
    let calm = fixture.open(&["cat"]);
    let watched = |id: &TerminalId| ViewerOptions {
        client: None,
        credit: 64 * 1024,
        ..attach(id, "unused", ViewerStart::Oldest)
    };
    let missing = TerminalId::new("nosuchthing1");
    let mut watch = fixture
        .terminals
        .watch(&[watched(&flood.id), watched(&missing), watched(&calm.id)])
        .expect("a watch");
    let mut flooded = 0;
    let mut failed = 0;
    let client = ClientId::new("typist").expect("valid");
    fixture.terminals.write(&calm.id, &client, user(0, b"hello\n")).await.expect("written");
    let mut said = Vec::new();
    while !String::from_utf8_lossy(&said).contains("hello\r\nhello\r\n") {
        match timeout(DEADLINE, watch.next()).await.expect("in time").expect("goes on") {
            WatchEvent::Failed { terminal, error } => {
                assert_eq!(terminal, missing);
                assert!(matches!(error, TerminalError::NotFound(_)));
                failed += 1;
            }
            WatchEvent::Frame(frame) => match frame.kind {
                FrameKind::Data(bytes) if frame.terminal == flood.id => flooded += bytes.len(),
                FrameKind::Data(bytes) => said.extend(bytes),
                _ => {}
            },
        }
    }
    assert_eq!(failed, 1);
    assert!(flooded <= 64 * 1024, "unacknowledged output exceeds the credit: {flooded}");
    // Returned credit is used.
    fixture.terminals.ack(watch.id(), &flood.id, 7, u64::MAX).expect("known");
    let more = async {
        loop {
            if let Some(WatchEvent::Frame(Frame {
                terminal,
                kind: FrameKind::Data(_) | FrameKind::Gap { .. },
                ..
            })) = watch.next().await
                && terminal == flood.id
            {
                return;
            }
        }
    };
    timeout(DEADLINE, more).await.expect("goes on");
    let id = watch.id().to_owned();
    drop(watch);
    assert!(matches!(fixture.terminals.ack(&id, &flood.id, 7, 1), Err(TerminalError::WatchNotFound(_))));
}

#[tokio::test]
async fn viewers_of_a_terminal_are_bounded() {
    let fixture = TerminalFixture::new();
    let terminal = fixture.open(&["cat"]);
    let viewers: Vec<_> = (0..session::viewer::MAX_VIEWERS)
        .map(|i| fixture.attach(&terminal.id, &format!("c{i}"), ViewerStart::Now))
        .collect();
    let refused =
        fixture.terminals.attach(&attach(&terminal.id, "one-more", ViewerStart::Now)).expect_err("too many");
    assert!(matches!(refused, TerminalError::TooManyStreams { .. }), "{refused}");
    assert_eq!(fixture.terminals.get(&terminal.id).expect("there").viewers, viewers.len());
    drop(viewers);
    fixture.attach(&terminal.id, "one-more", ViewerStart::Now);
    assert_eq!(fixture.terminals.get(&terminal.id).expect("there").viewers, 0);
}

#[tokio::test(start_paused = true)]
async fn quiet_stream_sends_keepalive_frames() {
    let fixture = TerminalFixture::new();
    let terminal = fixture.open(&["cat"]);
    let mut attachment = fixture.attach(&terminal.id, "a", ViewerStart::Now);
    let began = tokio::time::Instant::now();
    let mut kinds = Vec::new();
    while kinds.len() < 3 {
        if let Some(AttachmentEvent::Frame(frame)) = attachment.next().await
            && matches!(frame.kind, FrameKind::KeepAlive)
        {
            assert_eq!(frame.offset, fixture.terminals.get(&terminal.id).expect("there").next);
            kinds.push(began.elapsed().as_secs());
        }
    }
    assert!(kinds[0] >= 14 && kinds[2] >= 44 && kinds[2] < 60, "{kinds:?}");
}

#[tokio::test]
async fn viewer_receives_titles_directories_and_jobs() {
    let fixture = TerminalFixture::new();
    let script = concat!(
        r"printf 'a\033]2;first\007b\033]0;second\007c'; printf '\033]7;file://host/tmp/x%%20y\007'; ",
        r"sleep 0.5; set -m; echo on; sleep 600; true"
    );
    let terminal = fixture.open(&["bash", "-c", script]);
    let mut attachment = fixture.attach(&terminal.id, "a", ViewerStart::Oldest);
    let mut received = Vec::new();
    let began = Instant::now();
    while !received.iter().any(|t: &String| t == "job sleep") {
        assert!(began.elapsed() < DEADLINE, "{received:?}");
        match next_frame(&mut attachment).await.expect("goes on").kind {
            FrameKind::Title(title) => received.push(format!("title {title}")),
            FrameKind::Cwd(cwd) => received.push(format!("cwd {cwd}")),
            FrameKind::Foreground(job) => received.push(format!("job {job}")),
            // Output triggers another poll of the foreground job.
            FrameKind::Data(_) => {}
            _ => {}
        }
        attachment.writer().input(user(0, b"x"));
    }
    assert!(
        received.contains(&"title second".to_owned()) && received.contains(&"cwd /tmp/x y".to_owned()),
        "{received:?}"
    );
    let info = fixture.terminals.get(&terminal.id).expect("there");
    assert_eq!(
        (info.title.as_str(), info.cwd.as_str(), info.foreground.as_str()),
        ("second", "/tmp/x y", "sleep")
    );
    assert_eq!(fixture.terminals.foreground_jobs(), ["sleep in terminal 'bash'"]);
}

#[tokio::test]
async fn terminals_live_until_the_last_stream_is_dropped() {
    let fixture = TerminalFixture::new();
    let terminal = fixture.script("while read line; do echo got $line; done");
    let mut attachment = fixture.attach(&terminal.id, "a", ViewerStart::Oldest);
    let tasks = fixture.terminals.tasks().clone();
    let TerminalFixture { terminals, workspace: _workspace } = fixture;
    drop(terminals);
    attachment.writer().input(user(0, b"input\n"));
    read_until(&mut attachment, &mut ReceivedOutput::default(), "got input").await;
    drop(attachment);
    tasks.close();
    timeout(DEADLINE, tasks.wait()).await.expect("the terminal's task was cancelled");
}
