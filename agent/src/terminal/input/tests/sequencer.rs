//! Tests that input is accepted once and in order, whatever a client sends again.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn id(n: usize) -> ClientId {
    ClientId::new(format!("client-{n}")).expect("valid")
}

/// Returns the error with all its fields, because `TerminalError` cannot be compared.
fn error_text(error: TerminalError) -> String {
    format!("{error:?}")
}

fn error<T>(checked: Result<T, TerminalError>) -> String {
    checked.err().map(error_text).unwrap_or_default()
}

/// Offers input in the same way as the terminal does.
fn offer(
    inputs: &mut InputSequencer,
    client: &ClientId,
    epoch: u64,
    offset: u64,
    data: &[u8],
) -> Result<(), TerminalError> {
    inputs.check_epoch(epoch)?;
    if let CheckedInput::New(skip) = inputs.check(client, offset, data.len(), Instant::now())? {
        inputs.accept(client, &data[skip..], Instant::now());
    }
    Ok(())
}

#[derive(Debug, Clone)]
enum InputStep {
    /// A client sends a part of its text that starts near the expected offset.
    Send { client: usize, back: u64, ahead: u64, len: usize, stale: bool, reply: bool },
    /// The PTY takes some bytes.
    Pty(usize),
}

fn step() -> impl Strategy<Value = InputStep> {
    prop_oneof![
        3 => (
            0_usize..3, 0_u64..20, 0_u64..3, 1_usize..40,
            prop::bool::weighted(0.05), prop::bool::weighted(0.2),
        )
            .prop_map(|(client, back, ahead, len, stale, reply)| {
                InputStep::Send { client, back, ahead, len, stale, reply }
            }),
        2 => (1_usize..60).prop_map(InputStep::Pty),
    ]
}

/// Byte that a client sends at an offset. It identifies both the client and the offset.
fn byte(client: usize, offset: u64) -> u8 {
    (client as u8) << 6 | (offset % 61) as u8
}

proptest! {
    #[test]
    fn each_byte_is_written_once_and_in_order(steps in prop::collection::vec(step(), 1..120)) {
        let mut inputs = InputSequencer::new(5);
        // Reference: the accepted offset of each client, and the order in which bytes must reach
        // the PTY. The flag marks discarded replies.
        let mut taken: BTreeMap<usize, u64> = BTreeMap::new();
        let mut order: Vec<(usize, u64, bool)> = Vec::new();
        let mut pty: Vec<u8> = Vec::new();
        for step in steps {
            match step {
                InputStep::Send { client, back, ahead, len, stale, reply } => {
                    let expected = taken.get(&client).copied().unwrap_or(0);
                    let offset = expected.saturating_sub(back) + ahead;
                    let data: Vec<u8> = (offset..offset + len as u64).map(|o| byte(client, o)).collect();
                    let epoch = if stale { 4 } else { 5 };
                    let checked = inputs
                        .check_epoch(epoch)
                        .and_then(|()| inputs.check(&id(client), offset, len, Instant::now()));
                    if stale {
                        prop_assert_eq!(error(checked), error_text(TerminalError::StaleEpoch { epoch: 5 }));
                    } else if offset > expected {
                        prop_assert_eq!(error(checked), error_text(TerminalError::InputGap { expected }));
                    } else if offset + len as u64 <= expected {
                        prop_assert_eq!(checked.ok(), Some(CheckedInput::Repeat));
                    } else {
                        let skip = (expected - offset) as usize;
                        prop_assert_eq!(checked.ok(), Some(CheckedInput::New(skip)));
                        if reply {
                            inputs.discard_in_order(&id(client), len - skip, Instant::now());
                        } else {
                            inputs.accept(&id(client), &data[skip..], Instant::now());
                        }
                        order.extend((expected..offset + len as u64).map(|o| (client, o, reply)));
                        taken.insert(client, offset + len as u64);
                    }
                }
                InputStep::Pty(n) => {
                    let now = n.min(inputs.front().len());
                    pty.extend(&inputs.front()[..now]);
                    inputs.mark_written(now);
                }
            }
            for client in 0..3 {
                let expected = taken.get(&client).copied().unwrap_or(0);
                prop_assert_eq!(inputs.position(&id(client)).expected, expected);
            }
            check(&inputs, &order, &pty)?;
        }
    }
}

/// Checks that the PTY has received a prefix of the accepted bytes, and that the acknowledgements
/// end before the first byte that waits.
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
    prop_assert_eq!(written.next(), None, "the PTY receives only accepted bytes");
    for (client, acknowledged) in acknowledged.into_iter().enumerate() {
        prop_assert_eq!(inputs.position(&id(client)).written, acknowledged);
    }
    Ok(())
}

#[test]
fn queue_is_bounded_when_program_does_not_read() {
    let mut inputs = InputSequencer::new(1);
    let piece = vec![b'x'; 300 * 1024];
    let mut at = 0;
    let refused = loop {
        match offer(&mut inputs, &id(1), 1, at, &piece) {
            Ok(()) => at += piece.len() as u64,
            Err(refused) => break refused,
        }
    };
    assert!(matches!(refused, TerminalError::InputFull { expected } if expected == at), "{refused:?}");
    assert!(at < 2 * MAX_QUEUE_BYTES as u64);
    // The program reads again, and the client continues where it stopped.
    let front = inputs.front().len();
    inputs.mark_written(front);
    offer(&mut inputs, &id(1), 1, at, b"more").expect("taken");
}

/// Actions of clients of a terminal that remembers only a few of them.
#[derive(Debug, Clone)]
enum ClientAction {
    Attach(usize),
    Detach(usize),
    /// Types one more key, and sends everything unacknowledged, as a client does after it
    /// reconnects.
    Type(usize),
    /// Sends all unacknowledged input again, without a new key.
    Repeat(usize),
    /// The client receives an acknowledgement. Without this action the acknowledgement is lost.
    Acknowledge(usize),
    /// The PTY takes some bytes.
    Pty(usize),
    Seconds(u64),
}

fn action() -> impl Strategy<Value = ClientAction> {
    prop_oneof![
        2 => (0..CLIENT_COUNT).prop_map(ClientAction::Attach),
        2 => (0..CLIENT_COUNT).prop_map(ClientAction::Detach),
        6 => (0..CLIENT_COUNT).prop_map(ClientAction::Type),
        4 => (0..CLIENT_COUNT).prop_map(ClientAction::Repeat),
        2 => (0..CLIENT_COUNT).prop_map(ClientAction::Acknowledge),
        4 => (1_usize..6).prop_map(ClientAction::Pty),
        3 => (1_u64..100).prop_map(ClientAction::Seconds),
    ]
}

const CLIENT_COUNT: usize = 7;
const REMEMBERED: usize = 3;

/// Client that follows the protocol. It sends unacknowledged input again, and discards input whose
/// fate is unknown.
#[derive(Debug, Default)]
struct ModelClient {
    acked: u64,
    /// Keys without an acknowledgement, numbered from 0 over everything the client typed.
    unacked: Vec<u32>,
    keys: u32,
    attached: u32,
    /// The last key that the terminal accepted.
    last: Option<u32>,
    /// Time of the last accepted input or detach.
    seen: Option<Instant>,
}

impl ModelClient {
    /// Adopts the offset that the terminal expects of this client.
    fn adopt_offset(&mut self, expected: u64) {
        let end = self.acked + self.unacked.len() as u64;
        if (self.acked..=end).contains(&expected) {
            self.unacked.drain(..(expected - self.acked) as usize);
        } else {
            self.unacked.clear();
        }
        self.acked = expected;
    }
}

proptest! {
    #[test]
    fn no_key_is_typed_twice_despite_evictions(actions in prop::collection::vec(action(), 1..300)) {
        let mut inputs = InputSequencer { max_clients: REMEMBERED, ..InputSequencer::new(5) };
        let mut clients: Vec<ModelClient> = (0..CLIENT_COUNT).map(|_| ModelClient::default()).collect();
        let mut now = Instant::now();
        for action in actions {
            match action {
                ClientAction::Attach(index) => {
                    if inputs.attach(&id(index), now) {
                        let client = &mut clients[index];
                        client.attached += 1;
                        client.adopt_offset(inputs.position(&id(index)).expected);
                    }
                }
                ClientAction::Detach(index) => {
                    if clients[index].attached > 0 {
                        clients[index].attached -= 1;
                        inputs.detach(&id(index), now);
                    }
                }
                ClientAction::Type(index) | ClientAction::Repeat(index) => {
                    let client = &mut clients[index];
                    if matches!(action, ClientAction::Type(_)) {
                        client.unacked.push(client.keys);
                        client.keys += 1;
                    } else if client.unacked.is_empty() {
                        continue;
                    }
                    match inputs.check(&id(index), client.acked, client.unacked.len(), now) {
                        Ok(CheckedInput::Repeat) => {
                            prop_assert!(
                                client.unacked.last().copied() <= client.last,
                                "unaccepted input was treated as a repeat"
                            );
                        }
                        Ok(CheckedInput::New(skip)) => {
                            for key in &client.unacked[skip..] {
                                prop_assert!(
                                    Some(*key) > client.last,
                                    "key {1} of client {0} was typed twice",
                                    index,
                                    key
                                );
                                client.last = Some(*key);
                            }
                            let new = client.unacked[skip..].iter();
                            let bytes: Vec<u8> = new.map(|key| *key as u8).collect();
                            inputs.accept(&id(index), &bytes, now);
                            client.seen = Some(now);
                        }
                        Err(TerminalError::ClientEvicted { expected }) => {
                            prop_assert_eq!(client.attached, 0, "an attached client was evicted");
                            let is_recent =
                                client.seen.is_some_and(|seen| now.duration_since(seen) < RECENTLY_SEEN);
                            prop_assert!(!is_recent, "a client that typed recently was evicted");
                            client.adopt_offset(expected);
                            prop_assert!(
                                client.unacked.is_empty(),
                                "the client must discard input whose fate is unknown"
                            );
                        }
                        Err(TerminalError::TooManyStreams { .. }) => {
                            let busy = |p: &&ModelClient| p.attached > 0 || p.last.is_some();
                            prop_assert!(clients.iter().filter(busy).count() >= REMEMBERED);
                        }
                        Err(refused) => prop_assert!(false, "{:?}", refused),
                    }
                }
                ClientAction::Acknowledge(index) => {
                    let written = inputs.position(&id(index)).written;
                    let client = &mut clients[index];
                    let sent = client.acked + client.unacked.len() as u64;
                    if inputs.clients.contains_key(&id(index)) && (client.acked..=sent).contains(&written) {
                        client.adopt_offset(written);
                    }
                }
                ClientAction::Pty(n) => {
                    let n = n.min(inputs.front().len());
                    inputs.mark_written(n);
                }
                ClientAction::Seconds(n) => now += Duration::from_secs(n),
            }
            prop_assert!(inputs.clients.len() <= REMEMBERED);
        }
    }
}

#[test]
fn client_away_longest_is_evicted_and_its_repeat_is_rejected() {
    let mut inputs = InputSequencer::new(1);
    let begin = Instant::now();
    let later = |seconds: u64| begin + Duration::from_secs(seconds);
    let typed = |inputs: &mut InputSequencer, n: usize, at: Instant| {
        let checked = inputs.check(&id(n), inputs.position(&id(n)).expected, 3, at)?;
        assert_eq!(checked, CheckedInput::New(0));
        inputs.accept(&id(n), b"abc", at);
        inputs.mark_written(3);
        Ok::<(), TerminalError>(())
    };
    assert!(inputs.attach(&id(0), begin));
    for n in 0..MAX_CLIENTS {
        typed(&mut inputs, n, begin + Duration::from_millis(n as u64)).expect("taken");
    }
    // All clients typed recently, so none can be evicted.
    let refused = typed(&mut inputs, MAX_CLIENTS, later(60));
    assert!(matches!(refused, Err(TerminalError::TooManyStreams { limit: MAX_CLIENTS, .. })), "{refused:?}");
    assert!(!inputs.attach(&id(MAX_CLIENTS), later(60)));
    // Two minutes after its input, the first client that is not attached is evicted.
    typed(&mut inputs, MAX_CLIENTS, later(125)).expect("taken");
    assert_eq!(inputs.clients.len(), MAX_CLIENTS);
    assert_eq!(inputs.position(&id(0)).expected, 3, "an attached client is not evicted");
    assert_eq!(inputs.position(&id(2)).expected, 3);
    // The evicted client returns, and sends unacknowledged input again or continues at its offset.
    let evicted = error_text(TerminalError::ClientEvicted { expected: OFFSET_GAP_BYTES + 3 });
    for offset in [0, 3] {
        assert_eq!(error(inputs.check(&id(1), offset, 3, later(130))), evicted);
    }
    assert!(inputs.attach(&id(1), later(130)));
    assert_eq!(
        error(inputs.check(&id(1), 0, 3, later(130))),
        evicted,
        "still evicted after it attaches again"
    );
    typed(&mut inputs, 1, later(130)).expect("new input is accepted");
    let repeated = inputs.check(&id(1), OFFSET_GAP_BYTES + 3, 3, later(130));
    assert_eq!(repeated.ok(), Some(CheckedInput::Repeat));
    assert_eq!(inputs.position(&id(1)).written, OFFSET_GAP_BYTES + 6);
}

#[test]
fn clients_that_never_typed_evict_no_client_that_typed() {
    let mut inputs = InputSequencer::new(1);
    let now = Instant::now();
    offer(&mut inputs, &id(0), 1, 0, b"abc").expect("taken");
    inputs.mark_written(3);
    for n in 1..3 * MAX_CLIENTS {
        assert!(inputs.attach(&id(n), now));
        inputs.detach(&id(n), now);
    }
    assert_eq!(inputs.position(&id(0)).expected, 3);
    assert_eq!(inputs.position(&id(1)).expected, 0, "without an eviction a new client begins at 0");
}
