//! Ends: codes, signals, timeouts, what is left behind, and the end of all.

use std::time::{Duration, Instant};

use podling_agent::{
    claim::AgentPolicy,
    process::{ProcessError, ProcessEvent, ProcessSpec},
};
use tokio::time::{sleep, timeout};

use super::{SOON, World, all, id, next, sh, until};

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
    assert!(matches!(next(&mut watcher).await, Some(ProcessEvent::Output { .. })));
    let unknown = world.processes.signal(&id, "NOPE").unwrap_err();
    assert!(matches!(unknown, ProcessError::BadField { field: "signal", .. }), "{unknown}");
    world.processes.signal(&id, "INT").unwrap();
    world.processes.signal(&id, "TERM").unwrap();
    let seen = super::rest(watcher, [8, 0]).await;
    assert!(!seen.exit.as_ref().unwrap().held_by_background, "the sleeping child went as well");
    assert!(seen.signal().is_some());
    // The child's own child is reaped by somebody else, in their own time.
    until("an empty group is refused", || {
        matches!(world.processes.signal(&id, "TERM"), Err(ProcessError::Ended { .. }))
    })
    .await;
}

#[tokio::test]
async fn a_timeout_ends_what_listens_and_what_does_not() {
    let world = World::new();
    let timed = |script| ProcessSpec { timeout: Some(Duration::from_millis(300)), ..sh(script) };
    let polite = all(world.processes.start(timed("echo before; sleep 100")).await.unwrap()).await;
    assert_eq!((polite.out.as_slice(), polite.signal()), (&b"before\n"[..], Some(15)));
    assert!(polite.exit.unwrap().timed_out);

    let tidy =
        all(world.processes.start(timed("trap 'echo bye; exit 5' TERM; sleep 100 & wait")).await.unwrap())
            .await;
    assert_eq!((tidy.out.as_slice(), tidy.code()), (&b"bye\n"[..], Some(5)));

    let began = Instant::now();
    let deaf =
        all(world.processes.start(timed("trap '' TERM; while :; do sleep 0.05; done")).await.unwrap()).await;
    assert_eq!(deaf.signal(), Some(9));
    assert!(began.elapsed() >= Duration::from_secs(5), "it had its grace");

    let in_time = all(world
        .processes
        .start(ProcessSpec { timeout: Some(Duration::from_secs(100)), ..sh("exit 4") })
        .await
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
        assert!(matches!(next(watcher).await, Some(ProcessEvent::Output { .. })));
    }
    world.processes.end_all(Duration::from_millis(300)).await;
    assert_eq!(world.processes.running(), 0);
    for watcher in deaf {
        assert!(super::rest(watcher, [6, 0]).await.signal().is_some());
    }
    assert!(matches!(world.processes.start(sh("true")).await.unwrap_err(), ProcessError::ShuttingDown));
}

#[tokio::test]
async fn there_are_only_so_many_at_once() {
    let world = World::with(AgentPolicy { max_processes: 2, ..AgentPolicy::default() });
    let watchers = [world.sh("sleep 100"), world.sh("sleep 100")];
    let refused = world.processes.start(sh("true")).await.unwrap_err();
    assert!(matches!(refused, ProcessError::TooManyProcesses { limit: 2 }), "{refused}");
    for mut watcher in watchers {
        let id = id(&mut watcher).await;
        world.processes.signal(&id, "KILL").unwrap();
        all(watcher).await;
    }
    assert_eq!(all(world.sh("exit 6")).await.code(), Some(6));
}

/// A process that the script named in this file of the workspace.
fn named(world: &World, file: &str) -> Option<String> {
    let pid = std::fs::read_to_string(world.home.path().join(file)).ok()?;
    pid.ends_with('\n').then(|| pid.trim().to_owned())
}

/// Whether it is there and has not ended.
fn runs(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')))
}

#[tokio::test]
async fn a_signal_reaches_a_group_whose_leader_has_ended_and_is_refused_when_it_is_empty() {
    let world = World::new();
    let mut watcher = world.sh("sleep 1000 & echo $! > pid");
    let id = id(&mut watcher).await;
    assert!(all(watcher).await.exit.unwrap().held_by_background);
    let sleeper = named(&world, "pid").expect("a pid");
    assert!(runs(&sleeper));
    world.processes.signal(&id, "TERM").expect("the sleeper is still in the group");
    until("it has heard it", || !runs(&sleeper)).await;
    // Somebody else reaps it, in their own time.
    until("an empty group is refused", || {
        matches!(world.processes.signal(&id, "TERM"), Err(ProcessError::Ended { exit: Some(_) }))
    })
    .await;
}

#[tokio::test]
async fn the_end_reaches_those_whose_leader_has_ended_before() {
    let world = World::new();
    all(world.sh("(trap '' HUP TERM; while :; do sleep 0.05; done) & echo $! > pid")).await;
    let deaf = named(&world, "pid").expect("a pid");
    assert!(runs(&deaf) && world.processes.running() == 0);
    world.processes.end_all(Duration::from_millis(200)).await;
    assert!(!runs(&deaf), "told, and killed after the grace");
}

#[tokio::test]
async fn a_timeout_ends_also_those_who_outlive_their_leader() {
    let world = World::new();
    let script = "(trap '' TERM; while :; do sleep 0.05; done) & echo $! > pid; sleep 1000";
    let timed = ProcessSpec { timeout: Some(Duration::from_millis(300)), ..sh(script) };
    let seen = all(world.processes.start(timed).await.unwrap()).await;
    let exit = seen.exit.as_ref().unwrap();
    assert!(
        exit.timed_out && exit.held_by_background,
        "its end is told without waiting for the deaf one: {seen:?}"
    );
    let deaf = named(&world, "pid").expect("a pid");
    until("killed after the grace", || !runs(&deaf)).await;
}

#[tokio::test]
async fn watchers_that_never_read_do_not_hold_up_the_end() {
    let world = World::with(AgentPolicy { ring_bytes: 64 * 1024, ..AgentPolicy::default() });
    let stalled: Vec<_> = (0..4).map(|_| world.sh("yes")).collect();
    let mut reading =
        world.sh("trap '' HUP; trap 'seq 1 200000; exit 7' TERM; echo ready; while :; do sleep 0.01; done");
    id(&mut reading).await;
    assert!(matches!(next(&mut reading).await, Some(ProcessEvent::Output { .. })));
    // A grace that is longer than anybody here has patience: what holds the end up fails.
    let grace = SOON * 10;
    let (ended, seen) =
        tokio::join!(timeout(SOON, world.processes.end_all(grace)), super::rest(reading, [6, 0]));
    ended.expect("ended with the last of the processes, not with the last of the watchers");
    assert_eq!(world.processes.running(), 0);
    assert_eq!(seen.code(), Some(7));
    assert!(
        seen.gaps.is_empty() && seen.out.len() == 1_288_895,
        "whoever reads loses nothing: {}",
        seen.out.len()
    );
    for watcher in stalled {
        assert!(all(watcher).await.signal().is_some());
    }
}

/// The runtime is one thread, so that blocking it is to the agent as being stopped.
#[tokio::test]
async fn the_last_bytes_are_read_even_if_the_agent_was_held_up_when_they_came() {
    let world = World::new();
    let script = "(while [ ! -e go ]; do sleep 0.01; done; echo last; echo > said; while [ -e said ]; do sleep 0.05; done) & \
                  echo $$ > leader";
    let path = |name: &str| world.home.path().join(name);
    let (watcher, visitor) = loop {
        let watcher = world.sh(script);
        let visitor = {
            let listed = world.processes.list().pop().unwrap();
            world.processes.watch(&listed.id, listed.epoch, [0, 0]).unwrap()
        };
        until("the leader has started", || named(&world, "leader").is_some()).await;
        let leader = named(&world, "leader").unwrap();
        until("the leader was reaped", || !std::path::Path::new("/proc").join(&leader).exists()).await;
        // A turn for the task to learn of it.
        sleep(Duration::from_millis(2)).await;
        if world.processes.list().last().unwrap().exit.is_none() {
            break (watcher, visitor);
        }
        // The machine was too slow, and the silence is over already: once more.
        std::fs::write(path("go"), "").unwrap();
        until("it went on", || path("said").exists()).await;
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
    // The task's first turn after that is about something else than the pipes.
    drop(visitor);
    let seen = all(watcher).await;
    std::fs::remove_file(path("said")).unwrap();
    assert_eq!(String::from_utf8_lossy(&seen.out), "last\n");
}
