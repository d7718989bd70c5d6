//! Tests of size ownership and of accepted replies.

use proptest::prelude::*;

use super::*;

fn id(n: u8) -> ClientId {
    ClientId::new(format!("c{n}")).expect("valid")
}

fn size(n: u16) -> WindowSize {
    WindowSize { rows: n, cols: n }
}

#[test]
fn laptop_and_phone_share_a_terminal() {
    let mut writers = AttachedWriters::default();
    let (laptop, phone) = (id(1), id(2));
    assert_eq!(writers.attach(&laptop, Some(size(50)), 0), Some(size(50)));
    assert_eq!(writers.attach(&phone, Some(size(20)), 100), None, "the first owner keeps the size");
    assert_eq!(writers.resize(&phone, size(21), false), None, "only stored");
    assert!(!writers.accepts_reply(&phone, 200), "only the owner's replies are accepted");
    assert_eq!(writers.record_input(&phone), Some(size(21)), "the typing client owns the size");
    assert_eq!(writers.record_input(&phone), None);
    assert!(
        writers.accepts_reply(&phone, 101) && !writers.accepts_reply(&phone, 100),
        "replies to replayed output are rejected"
    );
    assert_eq!(writers.detach(&phone), Some(size(50)), "the other writer becomes the owner");
    assert_eq!(writers.detach(&laptop), None, "the size stays without writers");
}

#[test]
fn client_with_overlapping_streams_keeps_the_size() {
    let mut writers = AttachedWriters::default();
    writers.attach(&id(1), Some(size(30)), 0);
    writers.attach(&id(1), None, 10);
    assert_eq!(writers.detach(&id(1)), None);
    assert!(writers.is_owner(&id(1)));
}

#[test]
fn typing_client_without_window_owns_no_size() {
    let mut writers = AttachedWriters::default();
    writers.attach(&id(1), Some(size(30)), 0);
    writers.attach(&id(2), None, 0);
    assert_eq!(writers.record_input(&id(2)), None);
    assert!(writers.is_owner(&id(1)));
    assert_eq!(writers.resize(&id(9), size(9), false), None, "a client that is not attached changes nothing");
    assert_eq!(writers.resize(&id(9), size(9), true), Some(size(9)), "take overrides the size once");
}

#[derive(Debug, Clone)]
enum WriterStep {
    Attach(u8, Option<u16>),
    Detach(u8),
    Resize(u8, u16, bool),
    Typed(u8),
}

fn step() -> impl Strategy<Value = WriterStep> {
    let client = 0_u8..4;
    prop_oneof![
        (client.clone(), prop::option::of(1_u16..99)).prop_map(|(c, s)| WriterStep::Attach(c, s)),
        client.clone().prop_map(WriterStep::Detach),
        (client.clone(), 1_u16..99, any::<bool>()).prop_map(|(c, s, t)| WriterStep::Resize(c, s, t)),
        client.prop_map(WriterStep::Typed),
    ]
}

proptest! {
    #[test]
    fn owner_is_always_attached_and_has_a_size(steps in prop::collection::vec(step(), 1..60)) {
        let mut writers = AttachedWriters::default();
        for step in steps {
            let before = writers.owner.clone();
            let change = match &step {
                WriterStep::Attach(c, s) => writers.attach(&id(*c), s.map(size), 0),
                WriterStep::Detach(c) => writers.detach(&id(*c)),
                WriterStep::Resize(c, s, take) => writers.resize(&id(*c), size(*s), *take),
                WriterStep::Typed(c) => writers.record_input(&id(*c)),
            };
            if let Some(owner) = &writers.owner {
                prop_assert!(writers.writers[owner].size.is_some());
            } else {
                prop_assert!(writers.writers.values().all(|w| w.size.is_none()));
            }
            if before != writers.owner && writers.owner.is_some() {
                prop_assert!(
                    change.is_some(),
                    "a new owner's size must be applied: {step:?}"
                );
            }
        }
    }
}
