//! Output: split, complete, and from any position.

use podling_agent::{
    claim::AgentPolicy,
    process::{OutputStream, ProcessError, ProcessEvent, ProcessSpec},
};

use super::{EPOCH, World, all, id, next, rest, sh};

#[tokio::test]
async fn the_two_outputs_stay_apart() {
    let world = World::new();
    let seen = all(world.sh("echo out; echo err >&2; echo $FROM_CLAIM $HOME; exit 3")).await;
    assert_eq!(seen.out, format!("out\nyes {}\n", world.home.path().display()).as_bytes());
    assert_eq!((seen.err.as_slice(), seen.code()), (&b"err\n"[..], Some(3)));
    assert!(!seen.exit.unwrap().held_by_background);
}

#[tokio::test]
async fn a_slow_reader_loses_nothing_of_a_hundred_megabytes() {
    // A log of 100 KB, so that the command must wait a thousand times.
    let world = World::with(AgentPolicy { ring_bytes: 100_000, ..AgentPolicy::default() });
    let mut watcher = world.sh("yes 0123456789abcde | head -c 100000000; echo end >&2");
    let (mut out, mut checked) = (0u64, 0u64);
    let exit = loop {
        match next(&mut watcher).await {
            Some(ProcessEvent::Output { stream: OutputStream::Stdout, offset, data, .. }) => {
                assert_eq!(offset, out);
                for (at, byte) in data.iter().enumerate() {
                    let expected = b"0123456789abcde\n"[((offset + at as u64) % 16) as usize];
                    assert_eq!(*byte, expected);
                }
                out += data.len() as u64;
                checked += 1;
                // Slower than the pipe, without a clock: everybody else goes first.
                for _ in 0..3 {
                    tokio::task::yield_now().await;
                }
            }
            Some(ProcessEvent::Exit(exit)) => break exit,
            Some(ProcessEvent::Gap { .. }) => panic!("lost output"),
            Some(_) => {}
            None => panic!("no exit"),
        }
    };
    assert_eq!((out, exit.final_offsets), (100_000_000, [100_000_000, 4]));
    assert!(checked > 1_000);
}

#[tokio::test]
async fn a_watcher_that_stops_reading_holds_the_command_and_one_that_goes_lets_it_go_on() {
    let world = World::with(AgentPolicy { ring_bytes: 64 * 1024, ..AgentPolicy::default() });
    let mut slow = world.sh("head -c 1000000 /dev/zero; echo done > finished");
    let id = id(&mut slow).await;
    let mut quick = world.processes.watch(&id, EPOCH, [0, 0]).unwrap();
    let mut read = 0;
    while read < 64 * 1024 {
        if let Some(ProcessEvent::Output { data, .. }) = next(&mut quick).await {
            read += data.len();
        }
    }
    assert!(!world.home.path().join("finished").exists(), "the slow one has taken nothing");
    drop(slow);
    let seen = rest(quick, [read as u64, 0]).await;
    assert_eq!(seen.out.len() + read, 1_000_000);
    assert!(seen.gaps.is_empty());
}

#[tokio::test]
async fn a_client_whose_link_broke_goes_on_where_it_was() {
    let world = World::new();
    let mut watcher =
        world.sh("seq 1 2000; read go < /dev/null; while [ ! -e go ]; do sleep 0.01; done; seq 2001 4000");
    let id = id(&mut watcher).await;
    let mut text = Vec::new();
    while text.len() < 3_000 {
        if let Some(ProcessEvent::Output { data, .. }) = next(&mut watcher).await {
            text.extend_from_slice(&data);
        }
    }
    // The last piece was lost on the way.
    text.truncate(2_500);
    drop(watcher);
    std::fs::write(world.home.path().join("go"), "").unwrap();
    let watcher = world.processes.watch(&id, EPOCH, [2_500, 0]).unwrap();
    let seen = rest(watcher, [2_500, 0]).await;
    text.extend_from_slice(&seen.out);
    let expected: String = (1..=4000).map(|n| format!("{n}\n")).collect();
    assert!(text == expected.as_bytes());
    // Ended, it can be read once more.
    let again = all(world.processes.watch(&id, EPOCH, [0, 0]).unwrap()).await;
    assert!(again.out == expected.as_bytes());
}

#[tokio::test]
async fn what_is_no_longer_held_is_named() {
    let world = World::with(AgentPolicy { ring_bytes: 1_000, ..AgentPolicy::default() });
    let mut watcher = world.sh("seq 1 1000");
    let id = id(&mut watcher).await;
    let seen = all(watcher).await;
    let late = world.processes.watch(&id, EPOCH, [0, 0]).unwrap();
    let late = all(late).await;
    let lost = seen.out.len() - 1_000;
    assert_eq!(late.gaps, [(OutputStream::Stdout, 0, lost as u64)]);
    assert!(late.out == seen.out[lost..]);
}

#[tokio::test]
async fn positions_that_cannot_be_are_refused() {
    let world = World::new();
    let mut watcher = world.sh("echo hello");
    let id = id(&mut watcher).await;
    all(watcher).await;
    let refused = world.processes.watch(&id, EPOCH + 1, [0, 0]).unwrap_err();
    assert!(matches!(refused, ProcessError::StaleEpoch { epoch: EPOCH }), "{refused}");
    let refused = world.processes.watch(&id, EPOCH, [7, 0]).unwrap_err();
    assert!(matches!(refused, ProcessError::BadOffset { next: 6, .. }), "{refused}");
    let refused = world.processes.watch(&"nothing".to_owned().into(), EPOCH, [0, 0]).unwrap_err();
    assert!(matches!(refused, ProcessError::NotFound(_)), "{refused}");
}

#[tokio::test]
async fn a_repeated_start_watches_the_same_process() {
    let world = World::new();
    let start = ProcessSpec { request_id: "once".into(), ..sh("echo ran >> runs; cat runs") };
    let mut first = world.processes.start(start.clone()).await.unwrap();
    let mut again = world.processes.start(start).await.unwrap();
    assert_eq!(id(&mut first).await, id(&mut again).await);
    assert_eq!(all(first).await.out, b"ran\n");
    assert_eq!(all(again).await.out, b"ran\n");
    assert_eq!(world.processes.list().len(), 1);
}
