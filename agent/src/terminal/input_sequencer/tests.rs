//! Input is taken once and in order, whatever a client repeats.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn id(n: usize) -> ClientId {
    ClientId::new(format!("client-{n}")).expect("valid")
}

/// Offers as the terminal does.
fn offer(
    inputs: &mut InputSequencer,
    client: &ClientId,
    epoch: u64,
    offset: u64,
    data: &[u8],
) -> Result<(), SequenceError> {
    if let CheckedInput::New(skip) = inputs.check(client, epoch, offset, data.len(), Instant::now())? {
        inputs.accept(client, &data[skip..], Instant::now());
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
        let mut inputs = InputSequencer::new(5);
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
                    let verdict = inputs.check(&id(client), if stale { 4 } else { 5 }, offset, len, Instant::now());
                    if stale {
                        prop_assert_eq!(verdict, Err(SequenceError::StaleEpoch));
                    } else if offset > expected {
                        prop_assert_eq!(verdict, Err(SequenceError::Hole { expected }));
                    } else if offset + len as u64 <= expected {
                        prop_assert_eq!(verdict, Ok(CheckedInput::Repeat));
                    } else {
                        let skip = (expected - offset) as usize;
                        prop_assert_eq!(verdict, Ok(CheckedInput::New(skip)));
                        if reply {
                            inputs.discard_in_order(&id(client), len - skip, Instant::now());
                        } else {
                            inputs.accept(&id(client), &data[skip..], Instant::now());
                        }
                        order.extend((expected..offset + len as u64).map(|o| (client, o, reply)));
                        taken.insert(client, offset + len as u64);
                    }
                }
                Step::Pty(n) => {
                    let now = n.min(inputs.front().len());
                    pty.extend(&inputs.front()[..now]);
                    inputs.mark_written(now);
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
fn check(inputs: &InputSequencer, order: &[(usize, u64, bool)], pty: &[u8]) -> Result<(), TestCaseError> {
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
    let mut inputs = InputSequencer::new(1);
    let piece = vec![b'x'; 300 * 1024];
    let mut at = 0;
    let refused = loop {
        match offer(&mut inputs, &id(1), 1, at, &piece) {
            Ok(()) => at += piece.len() as u64,
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused, SequenceError::Full { expected: at });
    assert!(at < 2 * MAX_QUEUE_BYTES as u64);
    // It reads again: the client goes on where it was.
    let front = inputs.front().len();
    inputs.mark_written(front);
    assert_eq!(offer(&mut inputs, &id(1), 1, at, b"more"), Ok(()));
}

/// What people do on a terminal that remembers only a few of them.
#[derive(Debug, Clone)]
enum Visit {
    Come(usize),
    Leave(usize),
    /// Types a key more, and sends all that it has no acknowledgement for, as whoever has just come back.
    Type(usize),
    /// Sends it again; nothing new.
    Repeat(usize),
    /// The acknowledgement arrives; else it was lost on the way.
    Acknowledge(usize),
    /// The PTY takes some bytes.
    Pty(usize),
    Seconds(u64),
}

fn visit() -> impl Strategy<Value = Visit> {
    prop_oneof![
        2 => (0..PEOPLE).prop_map(Visit::Come),
        2 => (0..PEOPLE).prop_map(Visit::Leave),
        6 => (0..PEOPLE).prop_map(Visit::Type),
        4 => (0..PEOPLE).prop_map(Visit::Repeat),
        2 => (0..PEOPLE).prop_map(Visit::Acknowledge),
        4 => (1_usize..6).prop_map(Visit::Pty),
        3 => (1_u64..100).prop_map(Visit::Seconds),
    ]
}

const PEOPLE: usize = 7;
const REMEMBERED: usize = 3;

/// A client that keeps to the protocol: it sends again what has no acknowledgement, and gives up what nobody can tell about.
#[derive(Debug, Default)]
struct Person {
    acked: u64,
    /// Keys without an acknowledgement, numbered from 0 over all it ever typed.
    kept: Vec<u32>,
    keys: u32,
    attached: u32,
    /// The last key that was taken from it.
    last: Option<u32>,
    /// When it last typed successfully or left.
    seen: Option<Instant>,
}

impl Person {
    /// Where the terminal says this client stands.
    fn stands(&mut self, expected: u64) {
        let end = self.acked + self.kept.len() as u64;
        if (self.acked..=end).contains(&expected) {
            self.kept.drain(..(expected - self.acked) as usize);
        } else {
            self.kept.clear();
        }
        self.acked = expected;
    }
}

proptest! {
    #[test]
    fn nothing_is_typed_twice_whoever_is_forgotten(visits in prop::collection::vec(visit(), 1..300)) {
        let mut inputs = InputSequencer { max_clients: REMEMBERED, ..InputSequencer::new(5) };
        let mut people: Vec<Person> = (0..PEOPLE).map(|_| Person::default()).collect();
        let mut now = Instant::now();
        for visit in visits {
            match visit {
                Visit::Come(who) => {
                    if inputs.attach(&id(who), now) {
                        let person = &mut people[who];
                        person.attached += 1;
                        person.stands(inputs.expected(&id(who)));
                    }
                }
                Visit::Leave(who) => {
                    if people[who].attached > 0 {
                        people[who].attached -= 1;
                        inputs.detach(&id(who), now);
                    }
                }
                Visit::Type(who) | Visit::Repeat(who) => {
                    let person = &mut people[who];
                    if matches!(visit, Visit::Type(_)) {
                        person.kept.push(person.keys);
                        person.keys += 1;
                    } else if person.kept.is_empty() {
                        continue;
                    }
                    match inputs.check(&id(who), 5, person.acked, person.kept.len(), now) {
                        Ok(CheckedInput::Repeat) => {
                            prop_assert!(person.kept.last().copied() <= person.last, "what was never taken is no repeat");
                        }
                        Ok(CheckedInput::New(skip)) => {
                            for key in &person.kept[skip..] {
                                prop_assert!(Some(*key) > person.last, "client {} typed {} twice", who, key);
                                person.last = Some(*key);
                            }
                            let bytes: Vec<u8> = person.kept[skip..].iter().map(|key| *key as u8).collect();
                            inputs.accept(&id(who), &bytes, now);
                            person.seen = Some(now);
                        }
                        Err(SequenceError::ClientEvicted { expected }) => {
                            prop_assert_eq!(person.attached, 0, "it is here");
                            let lately = person.seen.is_some_and(|seen| now.duration_since(seen) < RECENTLY_SEEN);
                            prop_assert!(!lately, "it has just typed");
                            person.stands(expected);
                            prop_assert!(person.kept.is_empty(), "it must not guess");
                        }
                        Err(SequenceError::TooManyClients) => {
                            let busy = |p: &&Person| p.attached > 0 || p.last.is_some();
                            prop_assert!(people.iter().filter(busy).count() >= REMEMBERED);
                        }
                        Err(refused) => prop_assert!(false, "{:?}", refused),
                    }
                }
                Visit::Acknowledge(who) => {
                    let written = inputs.written(&id(who));
                    let person = &mut people[who];
                    let sent = person.acked + person.kept.len() as u64;
                    if inputs.clients.contains_key(&id(who)) && (person.acked..=sent).contains(&written) {
                        person.stands(written);
                    }
                }
                Visit::Pty(n) => {
                    let n = n.min(inputs.front().len());
                    inputs.mark_written(n);
                }
                Visit::Seconds(n) => now += Duration::from_secs(n),
            }
            prop_assert!(inputs.clients.len() <= REMEMBERED);
        }
    }
}

#[test]
fn the_client_away_longest_is_forgotten_and_what_it_repeats_is_refused() {
    let mut inputs = InputSequencer::new(1);
    let begin = Instant::now();
    let later = |seconds: u64| begin + Duration::from_secs(seconds);
    let typed = |inputs: &mut InputSequencer, n: usize, at: Instant| {
        let verdict = inputs.check(&id(n), 1, inputs.expected(&id(n)), 3, at)?;
        assert_eq!(verdict, CheckedInput::New(0));
        inputs.accept(&id(n), b"abc", at);
        inputs.mark_written(3);
        Ok::<(), SequenceError>(())
    };
    assert!(inputs.attach(&id(0), begin));
    for n in 0..MAX_CLIENTS {
        typed(&mut inputs, n, begin + Duration::from_millis(n as u64)).expect("taken");
    }
    // All were here lately.
    assert_eq!(typed(&mut inputs, MAX_CLIENTS, later(60)), Err(SequenceError::TooManyClients));
    assert!(!inputs.attach(&id(MAX_CLIENTS), later(60)));
    // Two minutes after it typed, the first of those who are not there makes room.
    typed(&mut inputs, MAX_CLIENTS, later(125)).expect("taken");
    assert_eq!(inputs.clients.len(), MAX_CLIENTS);
    assert_eq!(inputs.expected(&id(0)), 3, "attached: remembered");
    assert_eq!(inputs.expected(&id(2)), 3);
    // It comes back and sends again what it has no acknowledgement for, or goes on where it was.
    let forgotten = SequenceError::ClientEvicted { expected: OFFSET_GAP_BYTES + 3 };
    for offset in [0, 3] {
        assert_eq!(inputs.check(&id(1), 1, offset, 3, later(130)), Err(forgotten));
    }
    assert!(inputs.attach(&id(1), later(130)));
    assert_eq!(inputs.check(&id(1), 1, 0, 3, later(130)), Err(forgotten), "also when it is attached again");
    typed(&mut inputs, 1, later(130)).expect("begins anew");
    assert_eq!(inputs.check(&id(1), 1, OFFSET_GAP_BYTES + 3, 3, later(130)), Ok(CheckedInput::Repeat));
    assert_eq!(inputs.written(&id(1)), OFFSET_GAP_BYTES + 6);
}

#[test]
fn whoever_only_looks_makes_nobody_forgotten() {
    let mut inputs = InputSequencer::new(1);
    let now = Instant::now();
    offer(&mut inputs, &id(0), 1, 0, b"abc").expect("taken");
    inputs.mark_written(3);
    for n in 1..3 * MAX_CLIENTS {
        assert!(inputs.attach(&id(n), now));
        inputs.detach(&id(n), now);
    }
    assert_eq!(inputs.expected(&id(0)), 3);
    assert_eq!(inputs.expected(&id(1)), 0, "and a new client begins at 0");
}
