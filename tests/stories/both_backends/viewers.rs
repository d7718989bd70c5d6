//! Many look at once: one that stops reading harms nobody, and one that floods leaves room for the others.

use std::time::{Duration, Instant};

use bytes::Bytes;
use podling_proto::agent::v1::{
    AttachOpen, AttachRequest, Frame, From, FromNow, FromOldest, Input, InputKind,
    attach_request::Request as Ask, attach_response::Response as Answer, frame::Frame as What,
    from::From as Begin,
};
use podling_tests::{Client, Podling, client_helpers::script, resuming_client::ResumingClient, within};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// How many keys are typed beside a flood.
const KEYS: usize = 200;

type Asking = mpsc::Sender<AttachRequest>;

async fn attach(
    client: &Client,
    terminal: &str,
    name: &str,
    begin: Begin,
) -> (Asking, Streaming<podling_proto::agent::v1::AttachResponse>) {
    let (ask, asked) = mpsc::channel(4);
    let open = AttachOpen {
        terminal_id: terminal.to_owned(),
        client_id: name.to_owned(),
        from: Some(From { from: Some(begin) }),
        ..Default::default()
    };
    ask.send(AttachRequest { request: Some(Ask::Open(open)) }).await.expect("the channel is open");
    let answers = within("Attach", client.terminals().attach(ReceiverStream::new(asked))).await;
    (ask, answers.expect("attached").into_inner())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_that_stops_reading_harms_nobody() {
    let podling = Podling::up().await;
    let ada = podling.workspace("ada").await;
    let inside = podling.client().for_workspace(&ada.id);
    let program = "stty raw -echo; echo ready; head -c 1 >/dev/null; seq 1 1000000; echo fin; cat";
    let terminal = inside.open(script(program)).await;
    // It reads its first frame, and then nothing more.
    let stalled = podling.client().for_workspace(&ada.id);
    let (_ask, mut answers) = attach(&stalled, &terminal.id, "stalled", Begin::Oldest(FromOldest {})).await;
    within("the first frame", answers.message()).await.expect("a frame");

    // Beside it somebody works: 6.9 MB are printed, far more than the log or any window holds.
    let mut viewer = ResumingClient::new("worker", &terminal.id);
    viewer.lossless = true;
    viewer.run_until("it is ready", || inside.clone(), |p| p.text().contains("ready")).await;
    viewer.typed = b"x".to_vec();
    viewer.run_until("all is printed", || inside.clone(), |p| p.log().bytes.ends_with(b"fin\n")).await;
    viewer.typed.extend_from_slice(b"still here");
    viewer.run_until("keys echo", || inside.clone(), |p| p.log().bytes.ends_with(b"still here")).await;
    assert!(viewer.log().gaps.is_empty(), "whoever reads misses nothing");

    // When it reads again, it is told what it missed, is shown the screen as it is, and goes on from there.
    let (all, mut next, mut missed, mut screens) = (viewer.log().next, None, 0, 0);
    let catching_up = async {
        while next != Some(all) {
            let answer = answers.message().await.expect("a frame").expect("more");
            let Some(Answer::Frame(frame)) = answer.response else { continue };
            match frame.frame {
                Some(What::Data(data)) => {
                    assert_eq!(*next.get_or_insert(frame.offset), frame.offset, "no silent hole");
                    next = Some(frame.offset + data.len() as u64);
                }
                Some(What::Gap(gap)) => {
                    assert_eq!(*next.get_or_insert(gap.from), gap.from, "no silent hole");
                    missed += gap.to - gap.from;
                    next = Some(gap.to);
                }
                Some(What::Screen(_)) => screens += 1,
                _ => {}
            }
        }
    };
    within("the stalled viewer catches up", catching_up).await;
    viewer.typed.extend_from_slice(b"and again");
    viewer.run_until("keys echo", || inside.clone(), |p| p.log().bytes.ends_with(b"and again")).await;
    let mut tail = Vec::new();
    let going_on = async {
        while tail != b"and again" {
            let answer = answers.message().await.expect("a frame").expect("more");
            match answer.response {
                Some(Answer::Frame(Frame { frame: Some(What::Data(data)), .. })) => {
                    tail.extend_from_slice(&data)
                }
                Some(Answer::Frame(Frame { frame: Some(What::Screen(_)), .. })) => screens += 1,
                _ => {}
            }
        }
    };
    within("the stalled viewer goes on", going_on).await;
    eprintln!("the stalled viewer missed {missed} bytes, said as gaps");
    assert!(missed > 0 && screens > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_that_floods_leaves_room_for_one_that_echoes() {
    let podling = Podling::up().await;
    let ada = podling.workspace("ada").await;
    let inside = podling.client().for_workspace(&ada.id);
    let flood = inside.open(script("exec yes")).await;
    let (_ask, mut flooded) = attach(&inside, &flood.id, "flood", Begin::Now(FromNow {})).await;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { while let Ok(Some(_)) = flooded.message().await {} });

    let echo = inside.open(script("stty raw -echo; echo ready; exec cat")).await;
    let mut viewer = ResumingClient::new("typist", &echo.id);
    viewer.run_until("it is ready", || inside.clone(), |p| p.text().contains("ready")).await;
    let (ask, mut answers) = attach(&inside, &echo.id, "typist", Begin::Now(FromNow {})).await;
    let mut times = Vec::new();
    for offset in 0..KEYS {
        let begun = Instant::now();
        let input = Input {
            epoch: echo.epoch,
            offset: offset as u64,
            data: Bytes::from_static(b"k"),
            kind: InputKind::User.into(),
            reply_at: 0,
        };
        ask.send(AttachRequest { request: Some(Ask::Input(input)) }).await.expect("the stream is open");
        within("a key echoes beside a flood", async {
            loop {
                let answer = answers.message().await.expect("a frame").expect("more");
                if matches!(answer.response, Some(Answer::Frame(f)) if matches!(f.frame, Some(What::Data(_))))
                {
                    return;
                }
            }
        })
        .await;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    eprintln!("echo beside a flood: p50 {:?}, p99 {:?}", at(0.5), at(0.99));
    assert!(at(1.0) < Duration::from_secs(60));
}
