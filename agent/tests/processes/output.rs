//! Output of processes: stdout and stderr are separate, complete, and readable from any position.

use podling_agent::{
    claim::AgentPolicy,
    process::{OutputStream, ProcessError, ProcessEvent, ProcessSpec},
};

use super::{EPOCH, ProcessFixture, all, id, next, rest, sh};

#[tokio::test]
async fn stdout_and_stderr_stay_apart() {
    let fixture = ProcessFixture::new();
    let seen = all(fixture.sh("echo out; echo err >&2; echo $FROM_CLAIM $HOME; exit 3")).await;
    assert_eq!(seen.out, format!("out\nyes {}\n", fixture.home.path().display()).as_bytes());
    assert_eq!((seen.err.as_slice(), seen.code()), (&b"err\n"[..], Some(3)));
    assert!(!seen.exit.unwrap().held_by_background);
}

#[tokio::test]
async fn slow_reader_loses_nothing_of_100_mb() {
    // A log of 100 KB, so that the command has to wait a thousand times.
    let fixture = ProcessFixture::with(AgentPolicy { byte_log_bytes: 100_000, ..AgentPolicy::default() });
    let mut watcher = fixture.sh("yes 0123456789abcde | head -c 100000000; echo end >&2");
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
                // Makes the reader slower than the pipe without a clock, because all other tasks
                // run first.
                for _ in 0..3 {
                    tokio::task::yield_now().await;
                }
            }
            Some(ProcessEvent::Exit(exit)) => break exit,
            Some(ProcessEvent::Gap { .. }) => panic!("output was lost"),
            Some(_) => {}
            None => panic!("no exit"),
        }
    };
    assert_eq!((out, exit.final_offsets), (100_000_000, [100_000_000, 4]));
    assert!(checked > 1_000);
}

#[tokio::test]
async fn stalled_watcher_blocks_command_until_it_leaves() {
    let fixture = ProcessFixture::with(AgentPolicy { byte_log_bytes: 64 * 1024, ..AgentPolicy::default() });
    let mut slow = fixture.sh("head -c 1000000 /dev/zero; echo done > finished");
    let id = id(&mut slow).await;
    let mut quick = fixture.processes.watch(&id, EPOCH, [0, 0]).unwrap();
    let mut read = 0;
    while read < 64 * 1024 {
        if let Some(ProcessEvent::Output { data, .. }) = next(&mut quick).await {
            read += data.len();
        }
    }
    assert!(!fixture.home.path().join("finished").exists(), "command waits for the slow watcher");
    drop(slow);
    let seen = rest(quick, [read as u64, 0]).await;
    assert_eq!(seen.out.len() + read, 1_000_000);
    assert!(seen.gaps.is_empty());
}

#[tokio::test]
async fn reconnected_client_resumes_at_its_offset() {
    let fixture = ProcessFixture::new();
    let mut watcher =
        fixture.sh("seq 1 2000; read go < /dev/null; while [ ! -e go ]; do sleep 0.01; done; seq 2001 4000");
    let id = id(&mut watcher).await;
    let mut text = Vec::new();
    while text.len() < 3_000 {
        if let Some(ProcessEvent::Output { data, .. }) = next(&mut watcher).await {
            text.extend_from_slice(&data);
        }
    }
    // Simulates output that was lost in transit.
    text.truncate(2_500);
    drop(watcher);
    std::fs::write(fixture.home.path().join("go"), "").unwrap();
    let watcher = fixture.processes.watch(&id, EPOCH, [2_500, 0]).unwrap();
    let seen = rest(watcher, [2_500, 0]).await;
    text.extend_from_slice(&seen.out);
    let expected: String = (1..=4000).map(|n| format!("{n}\n")).collect();
    assert!(text == expected.as_bytes());
    // After the end the output can be read again.
    let again = all(fixture.processes.watch(&id, EPOCH, [0, 0]).unwrap()).await;
    assert!(again.out == expected.as_bytes());
}

#[tokio::test]
async fn discarded_output_is_reported_as_gap() {
    let fixture = ProcessFixture::with(AgentPolicy { byte_log_bytes: 1_000, ..AgentPolicy::default() });
    let mut watcher = fixture.sh("seq 1 1000");
    let id = id(&mut watcher).await;
    let seen = all(watcher).await;
    let late = fixture.processes.watch(&id, EPOCH, [0, 0]).unwrap();
    let late = all(late).await;
    let lost = seen.out.len() - 1_000;
    assert_eq!(late.gaps, [(OutputStream::Stdout, 0, lost as u64)]);
    assert!(late.out == seen.out[lost..]);
}

#[tokio::test]
async fn invalid_positions_are_rejected() {
    let fixture = ProcessFixture::new();
    let mut watcher = fixture.sh("echo hello");
    let id = id(&mut watcher).await;
    all(watcher).await;
    let refused = fixture.processes.watch(&id, EPOCH + 1, [0, 0]).unwrap_err();
    assert!(matches!(refused, ProcessError::StaleEpoch { epoch: EPOCH }), "{refused}");
    let refused = fixture.processes.watch(&id, EPOCH, [7, 0]).unwrap_err();
    assert!(matches!(refused, ProcessError::BadOffset { next: 6, .. }), "{refused}");
    let refused = fixture.processes.watch(&"nothing".to_owned().into(), EPOCH, [0, 0]).unwrap_err();
    assert!(matches!(refused, ProcessError::NotFound(_)), "{refused}");
}

#[tokio::test]
async fn repeated_start_watches_same_process() {
    let fixture = ProcessFixture::new();
    let start = ProcessSpec { request_id: "once".into(), ..sh("echo ran >> runs; cat runs") };
    let mut first = fixture.processes.start(start.clone()).await.unwrap();
    let mut again = fixture.processes.start(start).await.unwrap();
    assert_eq!(id(&mut first).await, id(&mut again).await);
    assert_eq!(all(first).await.out, b"ran\n");
    assert_eq!(all(again).await.out, b"ran\n");
    assert_eq!(fixture.processes.list().len(), 1);
}
