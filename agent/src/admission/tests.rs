//! The gate under arbitrary orders of events and under concurrent threads.

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

fn held(gate: &Arc<AdmissionGate>, intent: Intent) -> HeldRequest {
    match gate.try_admit(intent, 0) {
        Err(AdmitError::Held(hold)) => hold,
        other => panic!("not held: {other:?}"),
    }
}

fn refused(gate: &Arc<AdmissionGate>, intent: Intent) -> Rejection {
    match gate.try_admit(intent, 0) {
        Err(AdmitError::Rejected(refused)) => refused,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn request_during_hold_is_admitted_on_resume() {
    let gate = Arc::new(AdmissionGate::new());
    assert!(gate.try_admit(Intent::Keystroke, 1).is_ok());
    assert!(gate.hold(HOUR, false));
    let before = gate.last_admitted(Intent::Keystroke);
    let mut hold = held(&gate, Intent::Keystroke);
    assert_eq!(gate.last_admitted(Intent::Keystroke), before, "nothing was done");
    assert!(gate.resume());
    assert_eq!(hold.decision().await, Ok(()));
    assert!(gate.last_admitted(Intent::Keystroke) > before, "to pass is to be admitted");
}

#[tokio::test]
async fn hold_expires_by_itself() {
    let gate = Arc::new(AdmissionGate::new());
    assert!(gate.hold(Duration::from_millis(50), false));
    assert_eq!(gate.admit(Intent::ClientWrite).await, Ok(()));
    assert_eq!(gate.close(), Err(CommitError::NotHolding), "no longer prepared");
}

#[tokio::test]
async fn held_request_prevents_close_unless_forced() {
    let gate = Arc::new(AdmissionGate::new());
    assert_eq!(gate.close(), Err(CommitError::NotHolding));
    gate.hold(HOUR, false);
    let mut hold = held(&gate, Intent::ClientStart);
    assert_eq!(gate.close(), Err(CommitError::RequestsHeld(vec![Intent::ClientStart])));
    assert_eq!(hold.decision().await, Ok(()));
    gate.hold(HOUR, true);
    let mut hold = held(&gate, Intent::Lease);
    assert_eq!((gate.close(), gate.close()), (Ok(()), Ok(())));
    assert_eq!(hold.decision().await, Err(Rejection::Preparing));
    assert_eq!(refused(&gate, Intent::Keystroke), Rejection::Preparing);
    assert!(!gate.resume() && !gate.hold(HOUR, true), "for good");
}

#[tokio::test]
async fn dropped_requests_do_not_count_and_held_ones_are_bounded() {
    let gate = Arc::new(AdmissionGate::new());
    gate.hold(HOUR, false);
    drop(held(&gate, Intent::Keystroke));
    let holds: Vec<_> = (0..MAX_HELD_REQUESTS).map(|_| held(&gate, Intent::Keystroke)).collect();
    assert_eq!(refused(&gate, Intent::Keystroke), Rejection::Preparing);
    drop(holds);
    let Err(AdmitError::Held(large)) = gate.try_admit(Intent::Keystroke, MAX_HELD_BYTES) else {
        panic!("not held")
    };
    assert_eq!(refused(&gate, Intent::Keystroke), Rejection::Preparing, "bytes are bounded too");
    drop(large);
    drop(held(&gate, Intent::Keystroke));
    assert_eq!(gate.close(), Ok(()), "nobody waits");
}

#[test]
fn maintenance_mode_admits_only_restore() {
    let gate = Arc::new(AdmissionGate::new());
    gate.enter_maintenance();
    for intent in [Intent::Keystroke, Intent::ClientWrite, Intent::ClientStart, Intent::Lease] {
        assert_eq!(refused(&gate, intent), Rejection::Maintenance);
    }
    assert!(gate.try_admit(Intent::Restore, 0).is_ok());
    assert!(gate.last_admitted(Intent::ClientWrite).is_some(), "a client's write like others");
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

/// A caller that performs one operation as soon as the gate admits it.
struct Actor<'a>(Pin<Box<dyn Future<Output = Result<(), Rejection>> + 'a>>);

impl Actor<'_> {
    fn poll(&mut self) -> Poll<Result<(), Rejection>> {
        self.0.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }
}

fn timers() -> Runtime {
    runtime::Builder::new_current_thread().enable_time().build().expect("a runtime")
}

proptest! {
    #[test]
    fn any_order_admits_each_request_once_or_rejects_it(steps in steps()) {
        let runtime = timers();
        let _inside = runtime.enter();
        let gate = Arc::new(AdmissionGate::new());
        let (acts, shut) = (AtomicUsize::new(0), AtomicBool::new(false));
        let act = || Attempt::retry_while_held(|| {
            gate.try_admit(Intent::Keystroke, 1)?;
            assert!(!shut.load(Ordering::Relaxed), "done behind the commit");
            acts.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
        let (mut actors, mut done, mut left) = (Vec::<Actor<'_>>::new(), 0, 0);
        let (mut asked, mut denied) = (0, 0);
        // Expected state: while the gate holds or is closed, no operation is performed.
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
                    let next_ticket = !gate.held_intents().is_empty();
                    let hold = if lapsed { Duration::ZERO } else { HOUR };
                    prop_assert_eq!(gate.hold(hold, force), !shut.load(Ordering::Relaxed));
                    closed = !lapsed || (closed && next_ticket);
                }
                Step::Open => closed &= !gate.resume(),
                Step::Shut => match gate.close() {
                    Ok(()) => { shut.store(true, Ordering::Relaxed); closed = true; }
                    Err(_) => closed = false,
                },
            }
            prop_assert!(!closed || acts.load(Ordering::Relaxed) == before, "done behind a closed gate");
        }
        if !shut.load(Ordering::Relaxed) {
            gate.resume();
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
fn no_thread_is_admitted_between_hold_and_close() {
    const THREADS: usize = 4;
    for round in 0..200 {
        let (gate, start) = (Arc::new(AdmissionGate::new()), Barrier::new(THREADS + 1));
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    start.wait();
                    let mut passed = 0;
                    while gate.try_admit(Intent::Keystroke, 0).is_ok() {
                        passed += 1;
                    }
                    passed
                });
            }
            start.wait();
            for _ in 0..round {
                thread::yield_now();
            }
            assert!(gate.hold(HOUR, true));
            let seen = gate.last_admitted(Intent::Keystroke);
            thread::yield_now();
            gate.close().expect("prepared");
            assert_eq!(gate.last_admitted(Intent::Keystroke), seen);
        });
    }
}
