//! The door under every order of events, and under threads.

use std::{
    pin::Pin,
    sync::{
        Barrier,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    thread,
};

use proptest::prelude::*;
use tokio::runtime::{self, Runtime};

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn held(door: &Arc<Intents>, intent: Intent) -> Hold {
    match door.ask(intent, 0) {
        Err(Closed::Held(hold)) => hold,
        other => panic!("not held: {other:?}"),
    }
}

fn refused(door: &Arc<Intents>, intent: Intent) -> Refused {
    match door.ask(intent, 0) {
        Err(Closed::Refused(refused)) => refused,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn who_comes_while_it_is_closed_waits_and_passes_when_it_opens() {
    let door = Arc::new(Intents::new());
    assert!(door.ask(Intent::Keystroke, 1).is_ok());
    assert!(door.close(HOUR, false));
    let before = door.last(Intent::Keystroke);
    let mut hold = held(&door, Intent::Keystroke);
    assert_eq!(door.last(Intent::Keystroke), before, "nothing was done");
    assert!(door.open());
    assert_eq!(hold.over().await, Ok(()));
    assert!(door.last(Intent::Keystroke) > before, "to pass is to be admitted");
}

#[tokio::test]
async fn a_hold_that_nobody_ends_ends_itself() {
    let door = Arc::new(Intents::new());
    assert!(door.close(Duration::from_millis(50), false));
    assert_eq!(door.admit(Intent::ClientWrite).await, Ok(()));
    assert_eq!(door.shut(), Err(Unshut::Unprepared), "no longer prepared");
}

#[tokio::test]
async fn it_does_not_shut_before_somebody_who_waits_unless_by_force() {
    let door = Arc::new(Intents::new());
    assert_eq!(door.shut(), Err(Unshut::Unprepared));
    door.close(HOUR, false);
    let mut hold = held(&door, Intent::ClientStart);
    assert_eq!(door.shut(), Err(Unshut::Wanted(vec![Intent::ClientStart])));
    assert_eq!(hold.over().await, Ok(()));
    door.close(HOUR, true);
    let mut hold = held(&door, Intent::Lease);
    assert_eq!((door.shut(), door.shut()), (Ok(()), Ok(())));
    assert_eq!(hold.over().await, Err(Refused::Preparing));
    assert_eq!(refused(&door, Intent::Keystroke), Refused::Preparing);
    assert!(!door.open() && !door.close(HOUR, true), "for good");
}

#[tokio::test]
async fn who_left_does_not_count_and_no_more_are_held_than_there_is_room_for() {
    let door = Arc::new(Intents::new());
    door.close(HOUR, false);
    drop(held(&door, Intent::Keystroke));
    let holds: Vec<_> = (0..HELD).map(|_| held(&door, Intent::Keystroke)).collect();
    assert_eq!(refused(&door, Intent::Keystroke), Refused::Preparing);
    drop(holds);
    let Err(Closed::Held(large)) = door.ask(Intent::Keystroke, HELD_BYTES) else { panic!("not held") };
    assert_eq!(refused(&door, Intent::Keystroke), Refused::Preparing, "bytes are bounded too");
    drop(large);
    drop(held(&door, Intent::Keystroke));
    assert_eq!(door.shut(), Ok(()), "nobody waits");
}

#[test]
fn in_maintenance_only_restoring_is_admitted() {
    let door = Arc::new(Intents::new());
    door.maintain();
    for intent in [Intent::Keystroke, Intent::ClientWrite, Intent::ClientStart, Intent::Lease] {
        assert_eq!(refused(&door, intent), Refused::Maintenance);
    }
    assert!(door.ask(Intent::Restore, 0).is_ok());
    assert!(door.last(Intent::ClientWrite).is_some(), "a client's write like others");
}

#[derive(Debug, Clone)]
enum Step {
    Ask,
    Leave(usize),
    Poll,
    Close { force: bool, lapsed: bool },
    Open,
    Shut,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => Just(Step::Ask),
        1 => (0usize..8).prop_map(Step::Leave),
        4 => Just(Step::Poll),
        3 => (any::<bool>(), prop::bool::weighted(0.2)).prop_map(|(force, lapsed)| Step::Close { force, lapsed }),
        2 => Just(Step::Open),
        2 => Just(Step::Shut),
    ];
    prop::collection::vec(step, 0..60)
}

/// Somebody who acts once, as soon as the door lets it.
struct Actor<'a>(Pin<Box<dyn Future<Output = Result<(), Refused>> + 'a>>);

impl Actor<'_> {
    fn poll(&mut self) -> Poll<Result<(), Refused>> {
        self.0.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }
}

fn timers() -> Runtime {
    runtime::Builder::new_current_thread().enable_time().build().expect("a runtime")
}

proptest! {
    #[test]
    fn whatever_the_order_each_act_is_done_once_before_the_commit_or_refused(steps in steps()) {
        let runtime = timers();
        let _inside = runtime.enter();
        let door = Arc::new(Intents::new());
        let (acts, shut) = (AtomicUsize::new(0), AtomicBool::new(false));
        let act = || Unmet::until_met(|| {
            door.ask(Intent::Keystroke, 1)?;
            assert!(!shut.load(Ordering::Relaxed), "done behind the commit");
            acts.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
        let (mut actors, mut done, mut left) = (Vec::<Actor<'_>>::new(), 0, 0);
        let (mut asked, mut denied) = (0, 0);
        // What the door must be: closed lets nobody act.
        let mut closed = false;
        for step in steps {
            let before = acts.load(Ordering::Relaxed);
            match step {
                Step::Ask => {
                    asked += 1;
                    let mut actor = Actor(Box::pin(act()));
                    match actor.poll() {
                        Poll::Ready(Ok(())) => done += 1,
                        Poll::Ready(Err(_)) => denied += 1,
                        Poll::Pending => actors.push(actor),
                    }
                }
                Step::Leave(index) if index < actors.len() => {
                    drop(actors.remove(index));
                    left += 1;
                }
                Step::Leave(_) => {}
                Step::Poll => actors.retain_mut(|actor| match actor.poll() {
                    Poll::Ready(Ok(())) => { done += 1; false }
                    Poll::Ready(Err(_)) => { denied += 1; false }
                    Poll::Pending => true,
                }),
                Step::Close { force, lapsed } => {
                    let waited = !door.waiting().is_empty();
                    let hold = if lapsed { Duration::ZERO } else { HOUR };
                    prop_assert_eq!(door.close(hold, force), !shut.load(Ordering::Relaxed));
                    closed = !lapsed || (closed && waited);
                }
                Step::Open => closed &= !door.open(),
                Step::Shut => match door.shut() {
                    Ok(()) => { shut.store(true, Ordering::Relaxed); closed = true; }
                    Err(_) => closed = false,
                },
            }
            prop_assert!(!closed || acts.load(Ordering::Relaxed) == before, "done behind a closed door");
        }
        if !shut.load(Ordering::Relaxed) {
            door.open();
        }
        for mut actor in actors {
            match actor.poll() {
                Poll::Ready(Ok(())) => done += 1,
                Poll::Ready(Err(_)) => denied += 1,
                Poll::Pending => prop_assert!(false, "forgotten"),
            }
        }
        prop_assert_eq!(acts.load(Ordering::Relaxed), done, "each once");
        prop_assert_eq!(asked, done + denied + left, "none lost");
    }
}

#[test]
fn between_close_and_shut_no_thread_gets_through() {
    const THREADS: usize = 4;
    for round in 0..200 {
        let (door, start) = (Arc::new(Intents::new()), Barrier::new(THREADS + 1));
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    start.wait();
                    let mut passed = 0;
                    while door.ask(Intent::Keystroke, 0).is_ok() {
                        passed += 1;
                    }
                    passed
                });
            }
            start.wait();
            for _ in 0..round {
                thread::yield_now();
            }
            assert!(door.close(HOUR, true));
            let seen = door.last(Intent::Keystroke);
            thread::yield_now();
            door.shut().expect("prepared");
            assert_eq!(door.last(Intent::Keystroke), seen);
        });
    }
}
