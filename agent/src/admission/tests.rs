//! Tests of the gate with arbitrary orders of events and with concurrent threads.

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
        other => panic!("request not held: {other:?}"),
    }
}

fn rejected(gate: &Arc<AdmissionGate>, intent: Intent) -> Rejection {
    match gate.try_admit(intent, 0) {
        Err(AdmitError::Rejected(rejected)) => rejected,
        other => panic!("request not rejected: {other:?}"),
    }
}

#[tokio::test]
async fn request_during_hold_is_admitted_on_resume() {
    let gate = Arc::new(AdmissionGate::new());
    assert!(gate.try_admit(Intent::Keystroke, 1).is_ok());
    assert!(gate.hold(HOUR, false));
    let before = gate.last_admitted(Intent::Keystroke);
    let mut hold = held(&gate, Intent::Keystroke);
    assert_eq!(gate.last_admitted(Intent::Keystroke), before, "a held request is not recorded");
    assert!(gate.resume());
    assert_eq!(hold.decision().await, Ok(()));
    assert!(gate.last_admitted(Intent::Keystroke) > before, "an admitted request is recorded");
}

#[tokio::test]
async fn hold_expires_by_itself() {
    let gate = Arc::new(AdmissionGate::new());
    assert!(gate.hold(Duration::from_millis(50), false));
    assert_eq!(gate.admit(Intent::ClientWrite).await, Ok(()));
    assert_eq!(gate.close(), Err(CommitError::NotHolding), "the hold has expired");
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
    assert_eq!(rejected(&gate, Intent::Keystroke), Rejection::Preparing);
    assert!(!gate.resume() && !gate.hold(HOUR, true), "a closed gate stays closed");
}

#[tokio::test]
async fn dropped_requests_do_not_count_and_held_ones_are_bounded() {
    let gate = Arc::new(AdmissionGate::new());
    gate.hold(HOUR, false);
    drop(held(&gate, Intent::Keystroke));
    let holds: Vec<_> = (0..MAX_HELD_REQUESTS).map(|_| held(&gate, Intent::Keystroke)).collect();
    assert_eq!(rejected(&gate, Intent::Keystroke), Rejection::Preparing);
    drop(holds);
    let Err(AdmitError::Held(large)) = gate.try_admit(Intent::Keystroke, MAX_HELD_BYTES) else {
        panic!("request not held")
    };
    assert_eq!(rejected(&gate, Intent::Keystroke), Rejection::Preparing, "held bytes are bounded");
    drop(large);
    drop(held(&gate, Intent::Keystroke));
    assert_eq!(gate.close(), Ok(()), "no request is held");
}

#[test]
fn maintenance_mode_admits_only_restore() {
    let gate = Arc::new(AdmissionGate::new());
    gate.enter_maintenance();
    for intent in [Intent::Keystroke, Intent::ClientWrite, Intent::ClientStart, Intent::Lease] {
        assert_eq!(rejected(&gate, intent), Rejection::Maintenance);
    }
    assert!(gate.try_admit(Intent::Restore, 0).is_ok());
    assert!(gate.last_admitted(Intent::ClientWrite).is_some(), "a restore is recorded as a client write");
}

#[derive(Debug, Clone)]
enum GateEvent {
    Request,
    Drop(usize),
    Poll,
    Hold { force: bool, expired: bool },
    Resume,
    Close,
}

fn steps() -> impl Strategy<Value = Vec<GateEvent>> {
    let step = prop_oneof![
        6 => Just(GateEvent::Request),
        1 => (0usize..8).prop_map(GateEvent::Drop),
        4 => Just(GateEvent::Poll),
        3 => (any::<bool>(), prop::bool::weighted(0.2))
            .prop_map(|(force, expired)| GateEvent::Hold { force, expired }),
        2 => Just(GateEvent::Resume),
        2 => Just(GateEvent::Close),
    ];
    prop::collection::vec(step, 0..60)
}

/// A caller that performs one operation as soon as the gate admits it.
struct PendingOperation<'a>(Pin<Box<dyn Future<Output = Result<(), Rejection>> + 'a>>);

impl PendingOperation<'_> {
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
        let (operations, closed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let operation = || Attempt::retry_while_held(|| {
            gate.try_admit(Intent::Keystroke, 1)?;
            assert!(!closed.load(Ordering::Relaxed), "operation after the gate was closed");
            operations.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
        let (mut pending, mut done, mut left) = (Vec::<PendingOperation<'_>>::new(), 0, 0);
        let (mut requests, mut rejections) = (0, 0);
        // Expected state: while the gate holds or is closed, no operation is performed.
        let mut blocked = false;
        for step in steps {
            let before = operations.load(Ordering::Relaxed);
            match step {
                GateEvent::Request => {
                    requests += 1;
                    let mut operation = PendingOperation(Box::pin(operation()));
                    match operation.poll() {
                        Poll::Ready(Ok(())) => done += 1,
                        Poll::Ready(Err(_)) => rejections += 1,
                        Poll::Pending => pending.push(operation),
                    }
                }
                GateEvent::Drop(index) if index < pending.len() => {
                    drop(pending.remove(index));
                    left += 1;
                }
                GateEvent::Drop(_) => {}
                GateEvent::Poll => pending.retain_mut(|operation| match operation.poll() {
                    Poll::Ready(Ok(())) => { done += 1; false }
                    Poll::Ready(Err(_)) => { rejections += 1; false }
                    Poll::Pending => true,
                }),
                GateEvent::Hold { force, expired } => {
                    let had_held = !gate.held_intents().is_empty();
                    let hold = if expired { Duration::ZERO } else { HOUR };
                    prop_assert_eq!(gate.hold(hold, force), !closed.load(Ordering::Relaxed));
                    blocked = !expired || (blocked && had_held);
                }
                GateEvent::Resume => blocked &= !gate.resume(),
                GateEvent::Close => match gate.close() {
                    Ok(()) => { closed.store(true, Ordering::Relaxed); blocked = true; }
                    Err(_) => blocked = false,
                },
            }
            let performed = operations.load(Ordering::Relaxed) - before;
            prop_assert!(!blocked || performed == 0, "operation while the gate was holding or closed");
        }
        if !closed.load(Ordering::Relaxed) {
            gate.resume();
        }
        for mut operation in pending {
            match operation.poll() {
                Poll::Ready(Ok(())) => done += 1,
                Poll::Ready(Err(_)) => rejections += 1,
                Poll::Pending => prop_assert!(false, "held request without a decision"),
            }
        }
        prop_assert_eq!(operations.load(Ordering::Relaxed), done, "each admitted operation ran once");
        prop_assert_eq!(requests, done + rejections + left, "no request is lost");
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
            gate.close().expect("the gate is holding");
            assert_eq!(gate.last_admitted(Intent::Keystroke), seen);
        });
    }
}
