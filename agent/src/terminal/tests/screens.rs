//! Tests of snapshots of terminals that are in use.

use tokio_util::sync::CancellationToken;

use super::*;
use crate::byte_log::CHUNK_BYTES;

fn emulator(size: WindowSize) -> vt100::Parser {
    let side = |n| std::num::NonZeroU16::new(n).expect("not zero");
    vt100::Parser::new(side(size.rows), side(size.cols), 0)
}

/// Reads a stream that starts with a snapshot into an emulator, until the terminal has ended.
async fn watch_screen(mut attachment: Attachment) -> (vt100::Parser, usize) {
    let (mut emulated, mut snapshots) = (emulator(WindowSize::default()), 0);
    while let Some(frame) = next_frame(&mut attachment).await {
        match frame.kind {
            FrameKind::Screen(snapshot) => {
                emulated = emulator(snapshot.size);
                emulated.process(&snapshot.contents);
                snapshots += 1;
            }
            FrameKind::Data(bytes) => emulated.process(&bytes),
            _ => {}
        }
    }
    (emulated, snapshots)
}

#[tokio::test]
async fn snapshot_and_later_output_give_the_exact_screen() {
    let fixture = TerminalFixture::new();
    // A program draws all over the screen while viewers attach and detach.
    let script = r#"i=0; while [ $i -lt 600 ]; do
        printf '\033[%d;%dH\033[3%dmx%d\033[K' $((i % 24 + 1)) $((i * 7 % 70 + 1)) $((i % 8)) $i
        [ $((i % 97)) = 0 ] && printf '\033[2J'; i=$((i+1)); done; sleep 0.2"#;
    let terminal = fixture.script(script);
    let whole = fixture.attach(&terminal.id, "whole", ViewerStart::Oldest);
    let mut viewers = JoinSet::new();
    for i in 0..8 {
        let viewer = fixture.attach(&terminal.id, &format!("v{i}"), ViewerStart::Screen);
        viewers.spawn(watch_screen(viewer));
        let next = fixture.terminals.get(&terminal.id).expect("there").next;
        eventually(|| {
            let now = fixture.terminals.get(&terminal.id).expect("there");
            (now.next > next + 100 || now.exit.is_some()).then_some(())
        })
        .await;
    }
    let log = read_all(whole).await;
    let mut truth = emulator(WindowSize::default());
    truth.process(&log.bytes);
    while let Some(seen) = viewers.join_next().await {
        let (seen, snapshots) = seen.expect("no panic");
        assert_eq!(snapshots, 1);
        assert_eq!(seen.screen().contents_formatted(), truth.screen().contents_formatted());
        assert_eq!(seen.screen().cursor_position(), truth.screen().cursor_position());
    }
}

#[tokio::test]
async fn full_screen_program_can_be_joined_and_left() {
    let fixture = TerminalFixture::new();
    let terminal = fixture.script(
        r"printf 'before\r\n\033[?1049h\033[2J\033[5;5Hfull'; read x; printf '\033[?1049l'; echo after",
    );
    eventually(|| (fixture.terminals.get(&terminal.id).ok()?.next >= 30).then_some(())).await;
    let attachment = fixture.attach(&terminal.id, "a", ViewerStart::Screen);
    let writer = attachment.writer();
    let mut viewers = JoinSet::new();
    viewers.spawn(watch_screen(attachment));
    writer.input(user(0, b"\n"));
    let (seen, _) = viewers.join_next().await.expect("one").expect("no panic");
    let contents = seen.screen().contents();
    assert!(
        contents.contains("before") && contents.contains("after") && !contents.contains("full"),
        "{contents:?}"
    );
}

#[tokio::test]
async fn ended_terminal_still_has_a_screen() {
    let fixture = TerminalFixture::new();
    let terminal = fixture.script("seq 100000; printf end");
    fixture.exit(&terminal.id).await;
    let (seen, snapshots) = watch_screen(fixture.attach(&terminal.id, "a", ViewerStart::Screen)).await;
    assert_eq!(snapshots, 1);
    assert!(seen.screen().contents().ends_with("100000\nend"), "{:?}", seen.screen().contents());
}

/// Prints consecutive numbers without end, so that a missing line is visible on the screen.
const FLOOD: &[&str] = &["seq", "1", "9999999999999"];

/// Returns the numbers on the screen, and checks that they are consecutive. The last line may be
/// incomplete.
fn numbers(emulated: &vt100::Parser) -> Vec<u64> {
    let screen = emulated.screen();
    let rows = usize::from(screen.cursor_position().0);
    let cols = screen.size().1.get();
    let numbers: Vec<u64> =
        screen.rows(0, cols).take(rows).map(|row| row.trim().parse().expect("a number")).collect();
    assert!(numbers.windows(2).all(|two| two[0] + 1 == two[1]), "a line is missing: {numbers:?}");
    numbers
}

#[tokio::test]
async fn flooding_terminal_can_be_joined() {
    let fixture = TerminalFixture::new();
    let terminal = fixture.open(FLOOD);
    let printed = || fixture.terminals.get(&terminal.id).expect("there").next;
    eventually(|| (printed() > 1 << 20).then_some(())).await;
    for round in 0..3 {
        let mut joined = fixture.attach(&terminal.id, &format!("v{round}"), ViewerStart::Screen);
        let (mut emulated, mut at) = (emulator(WindowSize::default()), None);
        let mut followed = 0;
        while followed < 4 * CHUNK_BYTES {
            let frame = next_frame(&mut joined).await.expect("goes on");
            match frame.kind {
                FrameKind::Screen(snapshot) => {
                    assert_eq!((frame.offset, at), (snapshot.offset, None), "the snapshot comes first");
                    emulated.process(&snapshot.contents);
                    assert!(numbers(&emulated).len() > 20);
                    at = Some(frame.offset);
                }
                FrameKind::Data(bytes) => {
                    assert_eq!(Some(frame.offset), at, "output after the snapshot has no gap");
                    at = Some(frame.offset + bytes.len() as u64);
                    followed += bytes.len();
                    for part in bytes.chunks(100) {
                        emulated.process(part);
                        numbers(&emulated);
                    }
                }
                FrameKind::Gap { .. } => panic!("a viewer that reads all the time got a gap"),
                FrameKind::KeepAlive => panic!("no frame for 15 s"),
                _ => {}
            }
        }
        let before = printed();
        eventually(|| (printed() > before).then_some(())).await;
    }
}

#[tokio::test]
async fn viewer_too_slow_for_a_flood_gets_gap_and_snapshot() {
    let fixture = TerminalFixture::new();
    let terminal = fixture.open(FLOOD);
    let byte_log = terminal.byte_log_bytes as u64;
    let printed = || fixture.terminals.get(&terminal.id).expect("there").next;
    let mut slow = fixture.attach(&terminal.id, "slow", ViewerStart::Oldest);
    let mut log = ReceivedOutput::default();
    let mut emulated = emulator(WindowSize::default());
    let mut snapshots = 0;
    while snapshots < 3 {
        // The viewer reads a little, and then nothing until its position was evicted.
        let (gaps, read) = (log.gaps, log.bytes.len());
        let gap = loop {
            let frame = next_frame(&mut slow).await.expect("goes on");
            let kind = frame.kind.clone();
            log.take(frame);
            match kind {
                FrameKind::Gap { from, to } => break (from, to),
                FrameKind::Data(_) if log.bytes.len() > read + CHUNK_BYTES => {
                    let now = printed();
                    eventually(|| (printed() > now + 2 * byte_log).then_some(())).await;
                }
                FrameKind::Screen(_) => panic!("a snapshot without a gap"),
                FrameKind::KeepAlive => panic!("no frame for 15 s"),
                _ => {}
            }
        };
        assert!(gap.0 < gap.1 && log.gaps > gaps);
        let frame = next_frame(&mut slow).await.expect("goes on");
        let FrameKind::Screen(snapshot) = frame.kind else { panic!("a snapshot after the gap: {frame:?}") };
        assert_eq!(
            (frame.offset, snapshot.offset),
            (gap.1, gap.1),
            "the snapshot must be at the end of the gap"
        );
        emulated.process(b"\x1bc");
        emulated.process(&snapshot.contents);
        let frame = loop {
            let frame = next_frame(&mut slow).await.expect("goes on");
            if matches!(frame.kind, FrameKind::Data(_)) {
                break frame;
            }
        };
        let FrameKind::Data(bytes) = &frame.kind else { unreachable!("just looked") };
        assert_eq!(frame.offset, snapshot.offset);
        emulated.process(&bytes[..bytes.len().min(100)]);
        numbers(&emulated);
        log.take(frame);
        snapshots += 1;
    }
}

/// Many viewers request snapshots, but the flood is still read.
#[tokio::test]
async fn crowd_of_snapshot_requests_does_not_stop_a_flood() {
    let fixture = TerminalFixture::new();
    let terminal = fixture.open(FLOOD);
    let printed = || fixture.terminals.get(&terminal.id).expect("there").next;
    eventually(|| (printed() > 1 << 20).then_some(())).await;
    let enough = printed() + (1 << 20);
    let stop = CancellationToken::new();
    let mut crowd = JoinSet::new();
    for n in 0..20 {
        let (terminals, stop) = (fixture.terminals.clone(), stop.clone());
        let id = terminal.id.clone();
        crowd.spawn(async move {
            let mut snapshots = 0;
            while !stop.is_cancelled() || snapshots == 0 {
                let mut viewer =
                    terminals.attach(&attach(&id, &format!("c{n}"), ViewerStart::Screen)).expect("attached");
                let started = next_frame(&mut viewer).await.expect("goes on");
                assert!(matches!(started.kind, FrameKind::Started { .. }));
                let snapshot = next_frame(&mut viewer).await.expect("goes on");
                assert!(matches!(snapshot.kind, FrameKind::Screen(_)), "{snapshot:?}");
                snapshots += 1;
            }
        });
    }
    eventually(|| (printed() > enough).then_some(())).await;
    stop.cancel();
    while crowd.join_next().await.is_some_and(|done| done.is_ok()) {}
    assert!(crowd.is_empty(), "every viewer received its snapshots");
}
