//! Ends of processes: exit codes, signals, timeouts, background processes, and `end_all`.

use std::time::{Duration, Instant};

use podling_agent::{
    activity::notices::SleepCause,
    claim::AgentPolicy,
    process::{ProcessError, ProcessEvent, ProcessSpec},
};
use podling_testkit::wait_until;
use tokio::time::{sleep, timeout};

use super::{DEADLINE, ProcessFixture, all, id, next, sh};

#[tokio::test]
async fn exit_reports_code_or_signal() {
    let fixture = ProcessFixture::new();
    for code in [0, 1, 127, 255] {
        assert_eq!(all(fixture.sh(&format!("exit {code}"))).await.code(), Some(code));
    }
    for (name, number) in [("KILL", 9), ("SEGV", 11), ("TERM", 15)] {
        assert_eq!(all(fixture.sh(&format!("kill -{name} $$"))).await.signal(), Some(number));
    }
}

#[tokio::test]
async fn signal_reaches_whole_group() {
    let fixture = ProcessFixture::new();
    let mut watcher = fixture.sh("sleep 100 & echo started; wait; sleep 100");
    let id = id(&mut watcher).await;
    assert!(matches!(next(&mut watcher).await, Some(ProcessEvent::Output { .. })));
    let unknown = fixture.processes.signal(&id, "NOPE").unwrap_err();
    assert!(matches!(unknown, ProcessError::BadField { field: "signal", .. }), "{unknown}");
    fixture.processes.signal(&id, "INT").unwrap();
    fixture.processes.signal(&id, "TERM").unwrap();
    let seen = super::rest(watcher, [8, 0]).await;
    assert!(!seen.exit.as_ref().unwrap().held_by_background, "the sleeping child ended as well");
    assert!(seen.signal().is_some());
    // Another process reaps the grandchild, some time later.
    wait_until("an empty group is refused", || {
        matches!(fixture.processes.signal(&id, "TERM"), Err(ProcessError::Ended { .. }))
    })
    .await;
}

#[tokio::test]
async fn timeout_ends_cooperative_and_deaf_processes() {
    let fixture = ProcessFixture::new();
    let timed = |script| ProcessSpec { timeout: Some(Duration::from_millis(300)), ..sh(script) };
    let polite = all(fixture.processes.start(timed("echo before; sleep 100")).await.unwrap()).await;
    assert_eq!((polite.out.as_slice(), polite.signal()), (&b"before\n"[..], Some(15)));
    assert!(polite.exit.unwrap().timed_out);

    let tidy =
        all(fixture.processes.start(timed("trap 'echo bye; exit 5' TERM; sleep 100 & wait")).await.unwrap())
            .await;
    assert_eq!((tidy.out.as_slice(), tidy.code()), (&b"bye\n"[..], Some(5)));

    let began = Instant::now();
    let deaf =
        all(fixture.processes.start(timed("trap '' TERM; while :; do sleep 0.05; done")).await.unwrap())
            .await;
    assert_eq!(deaf.signal(), Some(9));
    assert!(began.elapsed() >= Duration::from_secs(5), "KILL is sent only after the grace period");

    let in_time = all(fixture
        .processes
        .start(ProcessSpec { timeout: Some(Duration::from_secs(100)), ..sh("exit 4") })
        .await
        .unwrap())
    .await;
    assert_eq!((in_time.code(), in_time.exit.unwrap().timed_out), (Some(4), false));
}

#[tokio::test]
async fn background_process_does_not_hide_exit() {
    let fixture = ProcessFixture::new();
    let seen = all(fixture.sh("sleep 60 & echo $! > pid; echo bye")).await;
    assert_eq!((seen.out.as_slice(), seen.code()), (&b"bye\n"[..], Some(0)));
    assert!(seen.exit.unwrap().held_by_background);
    let pid = std::fs::read_to_string(fixture.home.path().join("pid")).unwrap().trim().parse().unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("process still runs");
}

#[tokio::test]
async fn prompt_background_output_precedes_exit() {
    let fixture = ProcessFixture::new();
    let seen = all(fixture.sh("(for n in 1 2 3 4 5 6 7 8; do sleep 0.01; echo $n; done) & exit 2")).await;
    assert_eq!((seen.out.as_slice(), seen.code()), (&b"1\n2\n3\n4\n5\n6\n7\n8\n"[..], Some(2)));
}

#[tokio::test]
async fn dropped_stream_does_not_end_process() {
    let fixture = ProcessFixture::new();
    let watcher = fixture.sh("while [ ! -e go ]; do sleep 0.01; done; echo on > went");
    drop(watcher);
    std::fs::write(fixture.home.path().join("go"), "").unwrap();
    wait_until("command continued", || fixture.home.path().join("went").exists()).await;
    wait_until("exit is retained", || fixture.processes.list()[0].exit.is_some()).await;
}

#[tokio::test]
async fn end_all_ends_every_group() {
    let fixture = ProcessFixture::new();
    let script = "trap '' HUP TERM; echo ready; while :; do sleep 0.05; done";
    let mut deaf: Vec<_> = (0..3).map(|_| fixture.sh(script)).collect();
    deaf.push(fixture.sh("echo ready; sleep 1000"));
    for watcher in &mut deaf {
        id(watcher).await;
        assert!(matches!(next(watcher).await, Some(ProcessEvent::Output { .. })));
    }
    fixture.processes.end_all(Duration::from_millis(300), SleepCause::Idle).await;
    assert_eq!(fixture.processes.running(), 0);
    for watcher in deaf {
        assert!(super::rest(watcher, [6, 0]).await.signal().is_some());
    }
    assert!(matches!(fixture.processes.start(sh("true")).await.unwrap_err(), ProcessError::ShuttingDown));
}

#[tokio::test]
async fn process_limit_is_enforced() {
    let fixture = ProcessFixture::with(AgentPolicy { max_processes: 2, ..AgentPolicy::default() });
    let watchers = [fixture.sh("sleep 100"), fixture.sh("sleep 100")];
    let refused = fixture.processes.start(sh("true")).await.unwrap_err();
    assert!(matches!(refused, ProcessError::TooManyProcesses { limit: 2 }), "{refused}");
    for mut watcher in watchers {
        let id = id(&mut watcher).await;
        fixture.processes.signal(&id, "KILL").unwrap();
        all(watcher).await;
    }
    assert_eq!(all(fixture.sh("exit 6")).await.code(), Some(6));
}

/// Returns the process id that the script wrote to this file; `None` until it is complete.
fn named(fixture: &ProcessFixture, file: &str) -> Option<String> {
    let pid = std::fs::read_to_string(fixture.home.path().join(file)).ok()?;
    pid.ends_with('\n').then(|| pid.trim().to_owned())
}

/// Returns whether the process exists and is not a zombie.
fn runs(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')))
}

#[tokio::test]
async fn signal_reaches_group_until_it_is_empty() {
    let fixture = ProcessFixture::new();
    let mut watcher = fixture.sh("sleep 1000 & echo $! > pid");
    let id = id(&mut watcher).await;
    assert!(all(watcher).await.exit.unwrap().held_by_background);
    let sleeper = named(&fixture, "pid").expect("a pid");
    assert!(runs(&sleeper));
    fixture.processes.signal(&id, "TERM").expect("the sleeper is still in the group");
    wait_until("sleeper has ended", || !runs(&sleeper)).await;
    // Another process reaps it, some time later.
    wait_until("an empty group is refused", || {
        matches!(fixture.processes.signal(&id, "TERM"), Err(ProcessError::Ended { exit: Some(_) }))
    })
    .await;
}

#[tokio::test]
async fn end_all_reaches_group_without_leader() {
    let fixture = ProcessFixture::new();
    all(fixture.sh("(trap '' HUP TERM; while :; do sleep 0.05; done) & echo $! > pid")).await;
    let deaf = named(&fixture, "pid").expect("a pid");
    assert!(runs(&deaf) && fixture.processes.running() == 0);
    fixture.processes.end_all(Duration::from_millis(200), SleepCause::Idle).await;
    assert!(!runs(&deaf), "killed after the grace period");
}

#[tokio::test]
async fn timeout_ends_members_that_outlive_leader() {
    let fixture = ProcessFixture::new();
    let script = "(trap '' TERM; while :; do sleep 0.05; done) & echo $! > pid; sleep 1000";
    let timed = ProcessSpec { timeout: Some(Duration::from_millis(300)), ..sh(script) };
    let seen = all(fixture.processes.start(timed).await.unwrap()).await;
    let exit = seen.exit.as_ref().unwrap();
    assert!(
        exit.timed_out && exit.held_by_background,
        "exit is reported without waiting for the deaf process: {seen:?}"
    );
    let deaf = named(&fixture, "pid").expect("a pid");
    wait_until("killed after the grace period", || !runs(&deaf)).await;
}

#[tokio::test]
async fn stalled_watchers_do_not_delay_end_all() {
    let fixture = ProcessFixture::with(AgentPolicy { byte_log_bytes: 64 * 1024, ..AgentPolicy::default() });
    let stalled: Vec<_> = (0..4).map(|_| fixture.sh("yes")).collect();
    let mut reading =
        fixture.sh("trap '' HUP; trap 'seq 1 200000; exit 7' TERM; echo ready; while :; do sleep 0.01; done");
    id(&mut reading).await;
    assert!(matches!(next(&mut reading).await, Some(ProcessEvent::Output { .. })));
    // Longer than the test's own limit, so a delayed end fails the test.
    let grace = DEADLINE * 10;
    let (ended, seen) = tokio::join!(
        timeout(DEADLINE, fixture.processes.end_all(grace, SleepCause::Idle)),
        super::rest(reading, [6, 0])
    );
    ended.expect("end_all waits for processes, not for watchers");
    assert_eq!(fixture.processes.running(), 0);
    assert_eq!(seen.code(), Some(7));
    assert!(
        seen.gaps.is_empty() && seen.out.len() == 1_288_895,
        "a reading watcher loses nothing: {}",
        seen.out.len()
    );
    for watcher in stalled {
        assert!(all(watcher).await.signal().is_some());
    }
}

/// The runtime has one thread. Blocking this thread has the effect of stopping the agent.
#[tokio::test]
async fn last_bytes_are_read_after_agent_was_stopped() {
    let fixture = ProcessFixture::new();
    let script = "(while [ ! -e go ]; do sleep 0.01; done; echo last; echo > said; \
                  while [ -e said ]; do sleep 0.05; done) & \
                  echo $$ > leader";
    let path = |name: &str| fixture.home.path().join(name);
    let (watcher, visitor) = loop {
        let watcher = fixture.sh(script);
        let visitor = {
            let listed = fixture.processes.list().pop().unwrap();
            fixture.processes.watch(&listed.id, listed.epoch, [0, 0]).unwrap()
        };
        wait_until("leader has started", || named(&fixture, "leader").is_some()).await;
        let leader = named(&fixture, "leader").unwrap();
        wait_until("the leader was reaped", || !std::path::Path::new("/proc").join(&leader).exists()).await;
        // Lets the task notice the exit of the leader.
        sleep(Duration::from_millis(2)).await;
        if fixture.processes.list().last().unwrap().exit.is_none() {
            break (watcher, visitor);
        }
        // The machine was too slow, and the quiet period is already over. Try again.
        std::fs::write(path("go"), "").unwrap();
        wait_until("command continued", || path("said").exists()).await;
        for file in ["go", "said", "leader"] {
            std::fs::remove_file(path(file)).unwrap();
        }
    };
    std::fs::write(path("go"), "").unwrap();
    let held_up = Instant::now();
    while !path("said").exists() || held_up.elapsed() < Duration::from_millis(400) {
        let pause = rustix::event::Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
        rustix::event::poll(&mut [], Some(&pause)).unwrap();
    }
    // Wakes the task for a reason other than its pipes.
    drop(visitor);
    let seen = all(watcher).await;
    std::fs::remove_file(path("said")).unwrap();
    assert_eq!(String::from_utf8_lossy(&seen.out), "last\n");
}
