//! Pictures of terminals that are in use.

use super::*;

fn emulator(size: Size) -> vt100::Parser {
    let side = |n| std::num::NonZeroU16::new(n).expect("not zero");
    vt100::Parser::new(side(size.rows), side(size.cols), 0)
}

/// Reads a stream that begins with a picture into an emulator, until the terminal has ended.
async fn watch_screen(mut attachment: Attachment) -> (vt100::Parser, usize) {
    let (mut emulated, mut pictures) = (emulator(Size::default()), 0);
    while let Some(frame) = next_frame(&mut attachment).await {
        match frame.kind {
            FrameKind::Screen(shot) => {
                emulated = emulator(shot.size);
                emulated.process(&shot.contents);
                pictures += 1;
            }
            FrameKind::Data(bytes) => emulated.process(&bytes),
            _ => {}
        }
    }
    (emulated, pictures)
}

#[tokio::test]
async fn a_picture_and_what_follows_are_the_true_screen() {
    let house = House::new();
    // A program that draws all over the screen while people come and go.
    let script = r#"i=0; while [ $i -lt 600 ]; do
        printf '\033[%d;%dH\033[3%dmx%d\033[K' $((i % 24 + 1)) $((i * 7 % 70 + 1)) $((i % 8)) $i
        [ $((i % 97)) = 0 ] && printf '\033[2J'; i=$((i+1)); done; sleep 0.2"#;
    let terminal = house.script(script);
    let whole = house.attach(&terminal.id, "whole", From::Oldest);
    let mut viewers = JoinSet::new();
    for i in 0..8 {
        let viewer = house.attach(&terminal.id, &format!("v{i}"), From::Screen);
        viewers.spawn(watch_screen(viewer));
        let next = house.terminals.get(&terminal.id).expect("there").next;
        eventually(|| {
            let now = house.terminals.get(&terminal.id).expect("there");
            (now.next > next + 100 || now.exit.is_some()).then_some(())
        })
        .await;
    }
    let log = read_all(whole).await;
    let mut truth = emulator(Size::default());
    truth.process(&log.bytes);
    while let Some(seen) = viewers.join_next().await {
        let (seen, pictures) = seen.expect("no panic");
        assert_eq!(pictures, 1);
        assert_eq!(seen.screen().contents_formatted(), truth.screen().contents_formatted());
        assert_eq!(seen.screen().cursor_position(), truth.screen().cursor_position());
    }
}

#[tokio::test]
async fn a_full_screen_program_can_be_joined_and_left() {
    let house = House::new();
    let terminal = house.script(
        r"printf 'before\r\n\033[?1049h\033[2J\033[5;5Hfull'; read x; printf '\033[?1049l'; echo after",
    );
    eventually(|| (house.terminals.get(&terminal.id).ok()?.next >= 30).then_some(())).await;
    let attachment = house.attach(&terminal.id, "a", From::Screen);
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
async fn the_screen_of_a_terminal_that_has_ended_is_still_there() {
    let house = House::new();
    let terminal = house.script("seq 100000; printf end");
    house.exit(&terminal.id).await;
    let (seen, pictures) = watch_screen(house.attach(&terminal.id, "a", From::Screen)).await;
    assert_eq!(pictures, 1);
    assert!(seen.screen().contents().ends_with("100000\nend"), "{:?}", seen.screen().contents());
}
