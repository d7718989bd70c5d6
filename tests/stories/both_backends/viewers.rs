//! Several viewers and terminals at once. A stalled viewer and a flooding terminal do not affect
//! the others.

use std::time::{Duration, Instant};

use podling_proto::agent::v1::{
    Frame, attach_response::Response as AttachReply, frame::Frame as FrameContent,
};
use podling_tests::{
    Podling, ResumingClient, TerminalStream, attach_open, from_now, from_oldest, script, within,
};
use tokio::task::JoinSet;

/// Number of keys typed during a flood.
const KEYS: usize = 200;

#[tokio::test(flavor = "multi_thread")]
async fn stalled_viewer_does_not_affect_others() {
    let podling = Podling::up().await;
    let ada = podling.workspace("ada").await;
    let inside = podling.client().for_workspace(&ada.id);
    let program = "stty raw -echo; echo ready; head -c 1 >/dev/null; seq 1 1000000; echo fin; cat";
    let terminal = inside.open(script(program)).await;
    // This viewer reads its first frame and then stops.
    let stalled = podling.client().for_workspace(&ada.id);
    let open = attach_open(&terminal.id, "stalled", from_oldest());
    let stalled = TerminalStream::start(&stalled, open);
    let mut stalled = within("the first frame", stalled).await.expect("a frame");

    // Another viewer works in the meantime. The program prints 6.9 MB, which is more than the byte
    // log and the stream's flow-control window hold.
    let mut viewer = ResumingClient::new("worker", &terminal.id);
    viewer.lossless = true;
    viewer.run_until("the program is ready", || inside.clone(), |p| p.text().contains("ready")).await;
    viewer.typed = b"x".to_vec();
    viewer
        .run_until("all output is received", || inside.clone(), |p| p.log().bytes.ends_with(b"fin\n"))
        .await;
    viewer.typed.extend_from_slice(b"still here");
    viewer.run_until("keys echo", || inside.clone(), |p| p.log().bytes.ends_with(b"still here")).await;
    assert!(viewer.log().gaps.is_empty(), "the reading viewer misses no output");

    // When the stalled viewer reads again, it receives the gap, the current screen, and then
    // output.
    let (all, mut next, mut missed, mut screens) = (viewer.log().next, None, 0, 0);
    let catching_up = async {
        while next != Some(all) {
            let answer = stalled.next().await.expect("a frame").expect("stream continues");
            let AttachReply::Frame(frame) = answer else { continue };
            match frame.frame {
                Some(FrameContent::Data(data)) => {
                    assert_eq!(
                        *next.get_or_insert(frame.offset),
                        frame.offset,
                        "missing output is reported as a gap"
                    );
                    next = Some(frame.offset + data.len() as u64);
                }
                Some(FrameContent::Gap(gap)) => {
                    assert_eq!(
                        *next.get_or_insert(gap.from),
                        gap.from,
                        "missing output is reported as a gap"
                    );
                    missed += gap.to - gap.from;
                    next = Some(gap.to);
                }
                Some(FrameContent::Screen(_)) => screens += 1,
                _ => {}
            }
        }
    };
    within("the stalled viewer receives all earlier output", catching_up).await;
    viewer.typed.extend_from_slice(b"and again");
    viewer.run_until("keys echo", || inside.clone(), |p| p.log().bytes.ends_with(b"and again")).await;
    let mut tail = Vec::new();
    let going_on = async {
        while tail != b"and again" {
            let answer = stalled.next().await.expect("a frame").expect("stream continues");
            match answer {
                AttachReply::Frame(Frame { frame: Some(FrameContent::Data(data)), .. }) => {
                    tail.extend_from_slice(&data)
                }
                AttachReply::Frame(Frame { frame: Some(FrameContent::Screen(_)), .. }) => screens += 1,
                _ => {}
            }
        }
    };
    within("the stalled viewer receives new output", going_on).await;
    eprintln!("the stalled viewer missed {missed} bytes, reported as gaps");
    assert!(missed > 0 && screens > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn flooding_terminal_does_not_delay_another() {
    let podling = Podling::up().await;
    let ada = podling.workspace("ada").await;
    let inside = podling.client().for_workspace(&ada.id);
    let flood = inside.open(script("exec yes")).await;
    let open = attach_open(&flood.id, "flood", from_now());
    let mut flooded = TerminalStream::start(&inside, open).await.expect("attached");
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { while let Ok(Some(_)) = flooded.next().await {} });

    let echo = inside.open(script("stty raw -echo; echo ready; exec cat")).await;
    let mut viewer = ResumingClient::new("writer", &echo.id);
    viewer.run_until("the program is ready", || inside.clone(), |p| p.text().contains("ready")).await;
    let open = attach_open(&echo.id, "writer", from_now());
    let mut writer = TerminalStream::start(&inside, open).await.expect("attached");
    let mut times = Vec::new();
    for _ in 0..KEYS {
        let started = Instant::now();
        assert!(writer.send("k").await, "the stream is open");
        within("a key echoes beside a flood", async {
            loop {
                let answer = writer.next().await.expect("a frame").expect("stream continues");
                if let AttachReply::Frame(frame) = answer
                    && matches!(frame.frame, Some(FrameContent::Data(_)))
                {
                    return;
                }
            }
        })
        .await;
        times.push(started.elapsed());
    }
    times.sort_unstable();
    let quantile = |q: f64| times[((times.len() - 1) as f64 * q) as usize];
    eprintln!("echo beside a flood: p50 {:?}, p99 {:?}", quantile(0.5), quantile(0.99));
    assert!(quantile(1.0) < Duration::from_secs(60));
}
