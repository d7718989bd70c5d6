//! Input is taken once and in order, whatever a client repeats.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn id(n: usize) -> ClientId {
    ClientId::new(format!("client-{n}")).expect("valid")
}

/// Offers as the terminal does.
fn offer(
    inputs: &mut Inputs,
    client: &ClientId,
    epoch: u64,
    offset: u64,
    data: &[u8],
) -> Result<(), Refused> {
    if let Verdict::New(skip) = inputs.judge(client, epoch, offset, data.len())? {
        inputs.take(client, &data[skip..]);
    }
    Ok(())
}

#[derive(Debug, Clone)]
enum Step {
    /// A client sends a part of its text, from somewhere around what is expected.
    Send { client: usize, back: u64, ahead: u64, len: usize, stale: bool, reply: bool },
    /// The PTY takes some bytes.
    Pty(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0_usize..3, 0_u64..20, 0_u64..3, 1_usize..40, prop::bool::weighted(0.05), prop::bool::weighted(0.2))
            .prop_map(|(client, back, ahead, len, stale, reply)| Step::Send { client, back, ahead, len, stale, reply }),
        2 => (1_usize..60).prop_map(Step::Pty),
    ]
}

/// The byte a client has at an offset: which client and where can be told from it.
fn byte(client: usize, offset: u64) -> u8 {
    (client as u8) << 6 | (offset % 61) as u8
}

proptest! {
    #[test]
    fn every_keystroke_is_written_once_and_in_order(steps in prop::collection::vec(step(), 1..120)) {
        let mut inputs = Inputs::new(5);
        // Reference: per client what was taken; over all, the order in which it must reach the PTY (None: dropped reply).
        let mut taken: BTreeMap<usize, u64> = BTreeMap::new();
        let mut order: Vec<(usize, u64, bool)> = Vec::new();
        let mut pty: Vec<u8> = Vec::new();
        for step in steps {
            match step {
                Step::Send { client, back, ahead, len, stale, reply } => {
                    let expected = taken.get(&client).copied().unwrap_or(0);
                    let offset = expected.saturating_sub(back) + ahead;
                    let data: Vec<u8> = (offset..offset + len as u64).map(|o| byte(client, o)).collect();
                    let verdict = inputs.judge(&id(client), if stale { 4 } else { 5 }, offset, len);
                    if stale {
                        prop_assert_eq!(verdict, Err(Refused::StaleEpoch));
                    } else if offset > expected {
                        prop_assert_eq!(verdict, Err(Refused::Hole { expected }));
                    } else if offset + len as u64 <= expected {
                        prop_assert_eq!(verdict, Ok(Verdict::Repeat));
                    } else {
                        let skip = (expected - offset) as usize;
                        prop_assert_eq!(verdict, Ok(Verdict::New(skip)));
                        if reply {
                            inputs.drop_in_turn(&id(client), len - skip);
                        } else {
                            inputs.take(&id(client), &data[skip..]);
                        }
                        order.extend((expected..offset + len as u64).map(|o| (client, o, reply)));
                        taken.insert(client, offset + len as u64);
                    }
                }
                Step::Pty(n) => {
                    let now = n.min(inputs.front().len());
                    pty.extend(&inputs.front()[..now]);
                    inputs.wrote(now);
                }
            }
            for client in 0..3 {
                prop_assert_eq!(inputs.expected(&id(client)), taken.get(&client).copied().unwrap_or(0));
            }
            check(&inputs, &order, &pty)?;
        }
    }
}

/// What reached the PTY is a beginning of what was taken, and acknowledged is what lies before the first byte that waits.
fn check(inputs: &Inputs, order: &[(usize, u64, bool)], pty: &[u8]) -> Result<(), TestCaseError> {
    let mut acknowledged = [0_u64; 3];
    let mut written = pty.iter();
    for (client, offset, dropped) in order {
        if !dropped {
            let Some(got) = written.next() else { break };
            prop_assert_eq!(*got, byte(*client, *offset));
        }
        acknowledged[*client] = offset + 1;
    }
    prop_assert_eq!(written.next(), None, "nothing that was not taken");
    for (client, acknowledged) in acknowledged.into_iter().enumerate() {
        prop_assert_eq!(inputs.written(&id(client)), acknowledged);
    }
    Ok(())
}

#[test]
fn a_program_that_does_not_read_fills_the_queue_and_no_more() {
    let mut inputs = Inputs::new(1);
    let piece = vec![b'x'; 300 * 1024];
    let mut at = 0;
    let refused = loop {
        match offer(&mut inputs, &id(1), 1, at, &piece) {
            Ok(()) => at += piece.len() as u64,
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused, Refused::Full { expected: at });
    assert!(at < 2 * QUEUE_BYTES as u64);
    // It reads again: the client goes on where it was.
    let front = inputs.front().len();
    inputs.wrote(front);
    assert_eq!(offer(&mut inputs, &id(1), 1, at, b"more"), Ok(()));
}

#[test]
fn the_client_unused_longest_is_forgotten_but_never_one_that_is_there() {
    let mut inputs = Inputs::new(1);
    assert!(inputs.attach(&id(0)));
    offer(&mut inputs, &id(0), 1, 0, b"abc").expect("taken");
    inputs.wrote(3);
    for n in 1..=CLIENTS {
        offer(&mut inputs, &id(n), 1, 0, b"x").expect("taken");
        inputs.wrote(1);
    }
    assert_eq!(inputs.expected(&id(0)), 3, "attached: remembered");
    assert_eq!(inputs.expected(&id(1)), 0, "forgotten: a new client");
    assert_eq!(inputs.expected(&id(2)), 1);
}
