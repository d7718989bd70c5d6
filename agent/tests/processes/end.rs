//! Ends: codes, signals, timeouts, what is left behind, and the end of all.

use std::time::{Duration, Instant};

use podling_agent::{
    claim::Policy,
    process::{Event, ProcessError, Start},
};

use super::{World, all, id, next, sh, until};

#[tokio::test]
async fn codes_and_signals_are_told_apart() {
    let world = World::new();
    for code in [0, 1, 127, 255] {
        assert_eq!(all(world.sh(&format!("exit {code}"))).await.code(), Some(code));
    }
    for (name, number) in [("KILL", 9), ("SEGV", 11), ("TERM", 15)] {
        assert_eq!(all(world.sh(&format!("kill -{name} $$"))).await.signal(), Some(number));
    }
}

#[tokio::test]
async fn a_signal_reaches_the_whole_group() {
    let world = World::new();
    let mut watcher = world.sh("sleep 100 & echo started; wait; sleep 100");
    let id = id(&mut watcher).await;
    assert!(matches!(next(&mut watcher).await, Some(Event::Output { .. })));
    let unknown = world.processes.signal(&id, "NOPE").unwrap_err();
    assert!(matches!(unknown, ProcessError::BadField { field: "signal", .. }), "{unknown}");
    world.processes.signal(&id, "INT").unwrap();
    world.processes.signal(&id, "TERM").unwrap();
    let seen = super::rest(watcher, [8, 0]).await;
    assert!(!seen.exit.as_ref().unwrap().held_by_background, "the sleeping child went as well");
    assert!(seen.signal().is_some());
    let late = world.processes.signal(&id, "TERM").unwrap_err();
    assert!(matches!(late, ProcessError::Ended { .. }), "{late}");
}

#[tokio::test]
async fn a_timeout_ends_what_listens_and_what_does_not() {
    let world = World::new();
    let timed = |script| Start { timeout: Some(Duration::from_millis(300)), ..sh(script) };
    let polite = all(world.processes.start(timed("echo before; sleep 100")).unwrap()).await;
    assert_eq!((polite.out.as_slice(), polite.signal()), (&b"before\n"[..], Some(15)));
    assert!(polite.exit.unwrap().timed_out);

    let tidy =
        all(world.processes.start(timed("trap 'echo bye; exit 5' TERM; sleep 100 & wait")).unwrap()).await;
    assert_eq!((tidy.out.as_slice(), tidy.code()), (&b"bye\n"[..], Some(5)));

    let began = Instant::now();
    let deaf = all(world.processes.start(timed("trap '' TERM; while :; do sleep 0.05; done")).unwrap()).await;
    assert_eq!(deaf.signal(), Some(9));
    assert!(began.elapsed() >= Duration::from_secs(5), "it had its grace");

    let in_time = all(world
        .processes
        .start(Start { timeout: Some(Duration::from_secs(100)), ..sh("exit 4") })
        .unwrap())
    .await;
    assert_eq!((in_time.code(), in_time.exit.unwrap().timed_out), (Some(4), false));
}

#[tokio::test]
async fn something_left_behind_does_not_hide_the_end() {
    let world = World::new();
    let seen = all(world.sh("sleep 60 & echo $! > pid; echo bye")).await;
    assert_eq!((seen.out.as_slice(), seen.code()), (&b"bye\n"[..], Some(0)));
    assert!(seen.exit.unwrap().held_by_background);
    let pid = std::fs::read_to_string(world.home.path().join("pid")).unwrap().trim().parse().unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it still runs");
}

#[tokio::test]
async fn what_a_background_job_prints_in_time_comes_before_the_end() {
    let world = World::new();
    let seen = all(world.sh("(for n in 1 2 3 4 5 6 7 8; do sleep 0.05; echo $n; done) & exit 2")).await;
    assert_eq!((seen.out.as_slice(), seen.code()), (&b"1\n2\n3\n4\n5\n6\n7\n8\n"[..], Some(2)));
}

#[tokio::test]
async fn a_stream_that_goes_ends_nothing() {
    let world = World::new();
    let watcher = world.sh("while [ ! -e go ]; do sleep 0.01; done; echo on > went");
    drop(watcher);
    std::fs::write(world.home.path().join("go"), "").unwrap();
    until("the command went on", || world.home.path().join("went").exists()).await;
    until("its end is kept", || world.processes.list()[0].exit.is_some()).await;
}

#[tokio::test]
async fn the_end_of_the_workspace_ends_every_group() {
    let world = World::new();
    let script = "trap '' HUP TERM; echo ready; while :; do sleep 0.05; done";
    let mut deaf: Vec<_> = (0..3).map(|_| world.sh(script)).collect();
    deaf.push(world.sh("echo ready; sleep 1000"));
    for watcher in &mut deaf {
        id(watcher).await;
        assert!(matches!(next(watcher).await, Some(Event::Output { .. })));
    }
    world.processes.end_all(Duration::from_millis(300)).await;
    assert_eq!(world.processes.running(), 0);
    for watcher in deaf {
        assert!(super::rest(watcher, [6, 0]).await.signal().is_some());
    }
    assert!(matches!(world.processes.start(sh("true")).unwrap_err(), ProcessError::ShuttingDown));
}

#[tokio::test]
async fn there_are_only_so_many_at_once() {
    let world = World::with(Policy { max_processes: 2, ..Policy::default() });
    let watchers = [world.sh("sleep 100"), world.sh("sleep 100")];
    let refused = world.processes.start(sh("true")).unwrap_err();
    assert!(matches!(refused, ProcessError::TooManyProcesses { limit: 2 }), "{refused}");
    for mut watcher in watchers {
        let id = id(&mut watcher).await;
        world.processes.signal(&id, "KILL").unwrap();
        all(watcher).await;
    }
    assert_eq!(all(world.sh("exit 6")).await.code(), Some(6));
}
