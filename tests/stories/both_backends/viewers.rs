//! Several viewers and terminals at once. A stalled viewer and a flooding terminal do not affect
//! the others.

use std::time::{Duration, Instant};

use bytes::Bytes;
use podling_proto::agent::v1::{
    AttachOpen, AttachRequest, Frame, From, FromNow, FromOldest, Input, InputKind,
    attach_request::Request as AttachMessage, attach_response::Response as AttachReply,
    frame::Frame as FrameContent, from::From as StartAt,
};
use podling_tests::{Client, Podling, client_helpers::script, resuming_client::ResumingClient, within};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// Number of keys typed during a flood.
const KEYS: usize = 200;

type AttachRequests = mpsc::Sender<AttachRequest>;

async fn attach(
    client: &Client,
    terminal: &str,
    name: &str,
    begin: StartAt,
) -> (AttachRequests, Streaming<podling_proto::agent::v1::AttachResponse>) {
    let (request_tx, request_rx) = mpsc::channel(4);
    let open = AttachOpen {
        terminal_id: terminal.to_owned(),
        client_id: name.to_owned(),
        from: Some(From { from: Some(begin) }),
        ..Default::default()
    };
    request_tx
        .send(AttachRequest { request: Some(AttachMessage::Open(open)) })
        .await
        .expect("the channel is open");
    let answers = within("Attach", client.terminals().attach(ReceiverStream::new(request_rx))).await;
    (request_tx, answers.expect("attached").into_inner())
}

#[tokio::test(flavor = "multi_thread")]
async fn stalled_viewer_does_not_affect_others() {
    let podling = Podling::up().await;
    let ada = podling.workspace("ada").await;
    let inside = podling.client().for_workspace(&ada.id);
    let program = "stty raw -echo; echo ready; head -c 1 >/dev/null; seq 1 1000000; echo fin; cat";
    let terminal = inside.open(script(program)).await;
    // This viewer reads its first frame and then stops.
    let stalled = podling.client().for_workspace(&ada.id);
    let (_request_tx, mut answers) =
        attach(&stalled, &terminal.id, "stalled", StartAt::Oldest(FromOldest {})).await;
    within("the first frame", answers.message()).await.expect("a frame");

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
            let answer = answers.message().await.expect("a frame").expect("stream continues");
            let Some(AttachReply::Frame(frame)) = answer.response else { continue };
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
            let answer = answers.message().await.expect("a frame").expect("stream continues");
            match answer.response {
                Some(AttachReply::Frame(Frame { frame: Some(FrameContent::Data(data)), .. })) => {
                    tail.extend_from_slice(&data)
                }
                Some(AttachReply::Frame(Frame { frame: Some(FrameContent::Screen(_)), .. })) => screens += 1,
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
    let (_request_tx, mut flooded) = attach(&inside, &flood.id, "flood", StartAt::Now(FromNow {})).await;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { while let Ok(Some(_)) = flooded.message().await {} });

    let echo = inside.open(script("stty raw -echo; echo ready; exec cat")).await;
    let mut viewer = ResumingClient::new("writer", &echo.id);
    viewer.run_until("the program is ready", || inside.clone(), |p| p.text().contains("ready")).await;
    let (request_tx, mut answers) = attach(&inside, &echo.id, "writer", StartAt::Now(FromNow {})).await;
    let mut times = Vec::new();
    for offset in 0..KEYS {
        let started = Instant::now();
        let input = Input {
            epoch: echo.epoch,
            offset: offset as u64,
            data: Bytes::from_static(b"k"),
            kind: InputKind::User.into(),
            reply_at: 0,
        };
        request_tx
            .send(AttachRequest { request: Some(AttachMessage::Input(input)) })
            .await
            .expect("the stream is open");
        within("a key echoes beside a flood", async {
            loop {
                let answer = answers.message().await.expect("a frame").expect("stream continues");
                if let Some(AttachReply::Frame(frame)) = answer.response
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
