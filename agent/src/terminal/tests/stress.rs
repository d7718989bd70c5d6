//! Tests of combined load: floods, resizes, reconnects and exits at the same time.

use super::*;

fn emulator(size: WindowSize) -> vt100::Parser {
    let side = |n| std::num::NonZeroU16::new(n).expect("not zero");
    vt100::Parser::new(side(size.rows), side(size.cols), 0)
}

/// A client resizes its window over an unreliable connection while a terminal floods.
#[tokio::test]
async fn resized_and_rejoined_flood_keeps_its_positions() {
    let fixture = TerminalFixture::new();
    let terminal = fixture.open(&["seq", "1", "9999999999999"]);
    let mut at = None;
    for round in 0..30_u16 {
        let from = match at {
            Some(offset) if round % 3 != 0 => ViewerStart::Position { epoch: 7, offset },
            _ => ViewerStart::Screen,
        };
        let size = WindowSize { rows: 2 + round * 7 % 60, cols: 20 + round * 13 % 200 };
        let open = ViewerOptions { size: Some(size), ..attach(&terminal.id, "dragger", from) };
        let mut attachment = fixture.terminals.attach(&open).expect("attached");
        let mut log = ReceivedOutput::default();
        let mut last = size;
        for step in 0..12 {
            let frame = next_frame(&mut attachment).await.expect("goes on");
            assert!(!matches!(frame.kind, FrameKind::KeepAlive), "round {round}: no frame for 15 s");
            if let FrameKind::Screen(snapshot) = &frame.kind {
                assert!(snapshot.size.rows <= 80 && snapshot.size.cols <= 240, "{:?}", snapshot.size);
                let mut emulated = emulator(snapshot.size);
                emulated.process(&snapshot.contents);
                assert_eq!(emulated.screen().cursor_position(), snapshot.cursor);
            }
            log.take(frame);
            last = WindowSize { rows: 2 + (round + step) % 70, cols: 20 + (round * step) % 200 };
            attachment.writer().resize(last, false).expect("resized");
        }
        assert_eq!(
            fixture.terminals.get(&terminal.id).expect("there").size,
            last,
            "the last resize must win"
        );
        at = Some(log.at);
    }
}

/// A program exits while viewers wait for its snapshot.
#[tokio::test]
async fn waiting_viewer_gets_snapshot_after_program_exits() {
    let fixture = TerminalFixture::new();
    for round in 0..8 {
        let terminal = fixture.script("seq 60000; printf end");
        let mut viewers = JoinSet::new();
        for n in 0..6 {
            // Some viewers attach at once, some in the middle, some at the end.
            eventually(|| {
                let now = fixture.terminals.get(&terminal.id).expect("there");
                (now.next >= n * 60_000 || now.exit.is_some()).then_some(())
            })
            .await;
            let mut viewer = fixture.attach(&terminal.id, &format!("v{n}"), ViewerStart::Screen);
            viewers.spawn(async move {
                let (mut log, mut emulated) = (ReceivedOutput::default(), emulator(WindowSize::default()));
                while let Some(frame) = next_frame(&mut viewer).await {
                    match &frame.kind {
                        FrameKind::Screen(snapshot) => {
                            emulated.process(b"\x1bc");
                            emulated.process(&snapshot.contents);
                        }
                        FrameKind::Data(bytes) => emulated.process(bytes),
                        FrameKind::KeepAlive => panic!("no frame for 15 s"),
                        _ => {}
                    }
                    log.take(frame);
                }
                (log, emulated)
            });
        }
        while let Some(seen) = viewers.join_next().await {
            let (log, emulated) = seen.expect("no panic");
            assert!(log.exit.is_some());
            let contents = emulated.screen().contents();
            assert!(contents.ends_with("60000\nend"), "round {round}: {contents:?}");
        }
        fixture.terminals.close(&terminal.id, DEFAULT_GRACE).await.expect("closed");
    }
}

#[tokio::test]
async fn snapshot_cuts_no_character_and_no_sequence() {
    let fixture = TerminalFixture::new();
    let terminal = fixture.script(concat!(
        r"stty -echo; printf 'caf\303'; read x; printf '\251 \033[3'; read x; ",
        r"printf '1mred\033]0;ti'; read x; printf 'tle\007done'"
    ));
    let writer = fixture.attach(&terminal.id, "typist", ViewerStart::Now).writer();
    let steps = [(4, 3, "\u{e9} "), (9, 6, "red"), (20, 14, "done")];
    for (typed, (printed, whole, rest)) in (0..).zip(steps) {
        eventually(|| (fixture.terminals.get(&terminal.id).ok()?.next >= printed).then_some(())).await;
        let mut viewer = fixture.attach(&terminal.id, "viewer", ViewerStart::Screen);
        let mut emulated = emulator(WindowSize::default());
        loop {
            let frame = next_frame(&mut viewer).await.expect("goes on");
            if let FrameKind::Screen(snapshot) = frame.kind {
                assert_eq!(snapshot.offset, whole);
                emulated.process(&snapshot.contents);
                break;
            }
        }
        writer.input(user(typed, b"\n"));
        while !emulated.screen().contents().contains(rest) {
            if let FrameKind::Data(bytes) = next_frame(&mut viewer).await.expect("goes on").kind {
                emulated.process(&bytes);
            }
        }
        assert!(emulated.screen().contents().starts_with("caf\u{e9}"), "{:?}", emulated.screen().contents());
    }
}

/// Many viewers request a snapshot of the largest window with a full-screen program.
#[tokio::test]
async fn snapshot_of_huge_window_is_bounded() {
    let fixture = TerminalFixture::new();
    let huge = WindowSize::new(4096, 4096).expect("allowed");
    let program = Program {
        argv: [
            "sh",
            "-c",
            r"printf '\033[?1049h'; head -c 300000 /dev/urandom; printf '\033[2J\033[Hready'; read x",
        ]
        .map(str::to_owned)
        .into(),
        ..Program::default()
    };
    let create = CreateTerminal { program, size: huge, ..CreateTerminal::default() };
    let terminal = fixture.terminals.create(create).await.expect("a terminal");
    let mut viewers: Vec<_> =
        (0..16).map(|n| fixture.attach(&terminal.id, &format!("v{n}"), ViewerStart::Screen)).collect();
    for viewer in &mut viewers {
        loop {
            let frame = next_frame(viewer).await.expect("goes on");
            assert!(!matches!(frame.kind, FrameKind::KeepAlive), "no frame for 15 s");
            if let FrameKind::Screen(snapshot) = frame.kind {
                assert!(usize::from(snapshot.size.rows) * usize::from(snapshot.size.cols) <= 64 * 1024);
                assert!(
                    snapshot.contents.len() < 4 << 20,
                    "fits into a message: {}",
                    snapshot.contents.len()
                );
                break;
            }
        }
    }
    assert_eq!(fixture.terminals.panics(), (0, 0));
}
