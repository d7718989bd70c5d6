//! Stdin of processes: each byte is delivered once and in order, and the end is delivered too.

use bytes::Bytes;
use futures_util::FutureExt;
use podling_agent::{
    admission::Intent,
    process::{ProcessError, ProcessSpec, StdinProgress},
};
use tokio::time::timeout;

use super::{DEADLINE, EPOCH, ProcessFixture, all, id, next, sh};

fn reading(script: &str) -> ProcessSpec {
    ProcessSpec { stdin: true, ..sh(script) }
}

#[tokio::test]
async fn repeated_stdin_arrives_once() {
    let fixture = ProcessFixture::new();
    let mut watcher = fixture.processes.start(reading("cat")).await.unwrap();
    let id = id(&mut watcher).await;
    let write =
        |offset, data: &'static str, end| fixture.processes.write(&id, EPOCH, offset, Bytes::from(data), end);
    assert_eq!(write(0, "hello ", false).await.unwrap(), StdinProgress { next: 6, closed: false });
    assert_eq!(write(0, "hello ", false).await.unwrap().next, 6, "a repeat changes nothing");
    let gap = write(9, "x", false).await.unwrap_err();
    assert!(matches!(gap, ProcessError::InputGap { expected: 6 }), "{gap}");
    let stale = fixture.processes.write(&id, EPOCH - 1, 6, Bytes::new(), false).await.unwrap_err();
    assert!(matches!(stale, ProcessError::StaleEpoch { .. }), "{stale}");
    assert_eq!(write(3, "lo world", true).await.unwrap().next, 11);
    assert!(!write(3, "lo world", true).await.unwrap().closed, "the end may be repeated as well");
    assert_eq!(all(watcher).await.out, b"hello world");
    assert!(fixture.gate.last_admitted(Intent::Keystroke).is_some());
}

#[tokio::test]
async fn large_stdin_flows_while_output_is_read() {
    let fixture = ProcessFixture::new();
    let mut watcher = fixture.processes.start(reading("sha256sum | cut -c1-64; exit 9")).await.unwrap();
    let id = id(&mut watcher).await;
    let content: Vec<u8> = (0..20_000_000u32).map(|n| (n % 241) as u8).collect();
    let feed = async {
        for (n, chunk) in content.chunks(1 << 20).enumerate() {
            let offset = (n << 20) as u64;
            fixture.processes.write(&id, EPOCH, offset, chunk.to_vec().into(), false).await.unwrap();
        }
        fixture.processes.write(&id, EPOCH, content.len() as u64, Bytes::new(), true).await.unwrap()
    };
    let (progress, seen) = tokio::join!(feed, all(watcher));
    assert_eq!(progress, StdinProgress { next: 20_000_000, closed: false });
    let digest = ring::digest::digest(&ring::digest::SHA256, &content);
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!((String::from_utf8(seen.out.clone()).unwrap().trim(), seen.code()), (hex.as_str(), Some(9)));
}

#[tokio::test]
async fn closed_stdin_is_reported() {
    let fixture = ProcessFixture::new();
    let mut watcher = fixture.processes.start(reading("exec 0<&-; echo closed; sleep 100")).await.unwrap();
    let id = id(&mut watcher).await;
    next(&mut watcher).await;
    let large = Bytes::from(vec![0; 300_000]);
    let wrote =
        timeout(DEADLINE, fixture.processes.write(&id, EPOCH, 0, large, false)).await.unwrap().unwrap();
    assert_eq!(wrote, StdinProgress { next: 0, closed: true });
    fixture.processes.signal(&id, "KILL").unwrap();

    // The process ends while a write waits.
    let mut watcher = fixture.processes.start(reading("head -c 10 > /dev/null")).await.unwrap();
    let id = super::id(&mut watcher).await;
    let large = Bytes::from(vec![0; 1 << 20]);
    let wrote =
        timeout(DEADLINE, fixture.processes.write(&id, EPOCH, 0, large, false)).await.unwrap().unwrap();
    assert!(wrote.closed && wrote.next < 1 << 20, "{wrote:?}");
}

#[tokio::test]
async fn process_without_stdin_rejects_writes() {
    let fixture = ProcessFixture::new();
    let mut watcher = fixture.sh("cat; sleep 100");
    let id = id(&mut watcher).await;
    let refused = fixture.processes.write(&id, EPOCH, 0, "x".into(), false).await.unwrap_err();
    assert!(matches!(refused, ProcessError::BadField { .. }), "{refused}");
    fixture.processes.signal(&id, "KILL").unwrap();
    assert_eq!(all(watcher).await.signal(), Some(9));
}

#[tokio::test]
async fn exit_reports_how_much_stdin_was_read() {
    let wait = "while [ ! -e go ]; do sleep 0.01; done; ";
    for (script, ends, read) in [
        ("exit 0", false, 0),
        ("exit 0", true, 0),
        ("read line", false, 3),
        ("read line", true, 3),
        ("read line; read line", false, 6),
        ("cat > /dev/null", true, 9),
    ] {
        let fixture = ProcessFixture::new();
        let mut watcher = fixture.processes.start(reading(&format!("{wait}{script}"))).await.unwrap();
        let id = id(&mut watcher).await;
        fixture.processes.write(&id, EPOCH, 0, "ab\ncd\nef\n".into(), ends).await.unwrap();
        let taken = fixture.processes.wait_until_stdin_read(&id, 1);
        tokio::pin!(taken);
        assert!(ends || taken.as_mut().now_or_never().is_none(), "nothing is read before the file exists");
        std::fs::write(fixture.home.path().join("go"), "").unwrap();
        timeout(DEADLINE, taken).await.expect("the wait ends").unwrap();
        let exit = all(watcher).await.exit.unwrap();
        assert_eq!(exit.stdin_read, Some(read), "{script:?}, end sent: {ends}");
    }
    assert_eq!(all(ProcessFixture::new().sh("exit 0")).await.exit.unwrap().stdin_read, None);
}
