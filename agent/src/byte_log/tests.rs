//! Checks that every byte keeps its offset, for every reader and at every distance from the end.

use proptest::prelude::*;

use super::*;

/// Reference model: all bytes ever written, of which the log must hold the end.
#[derive(Default)]
struct Reference {
    all: Vec<u8>,
    max: usize,
}

impl Reference {
    fn oldest(&self) -> u64 {
        self.all.len().saturating_sub(self.max) as u64
    }
}

#[derive(Debug, Clone)]
enum LogStep {
    Push(usize),
    Read { at: u64, max: usize },
}

fn step() -> impl Strategy<Value = LogStep> {
    prop_oneof![
        (0_usize..40).prop_map(LogStep::Push),
        (0_usize..200_000).prop_map(LogStep::Push),
        (any::<u64>(), 0_usize..100_000).prop_map(|(at, max)| LogStep::Read { at, max }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn log_holds_the_end_of_everything_written(
        max in prop_oneof![1_usize..64, 1000_usize..300_000],
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let mut log = ByteLog::new(7, max);
        let mut reference = Reference { max, ..Reference::default() };
        for step in steps {
            match step {
                LogStep::Push(len) => {
                    let from = reference.all.len();
                    let bytes: Vec<u8> = (from..from + len).map(|i| (i % 251) as u8).collect();
                    log.push(&bytes);
                    reference.all.extend(bytes);
                }
                LogStep::Read { at, max } => {
                    let at = at % (reference.all.len() as u64 + 3);
                    check(&mut log, &reference, at, max)?;
                }
            }
            prop_assert_eq!(log.next(), reference.all.len() as u64);
            prop_assert_eq!(log.oldest(), reference.oldest());
        }
        // A reader that reads from the oldest byte to the end receives everything that is held.
        let mut at = log.oldest();
        let mut have = Vec::new();
        while let LogRead::Data { offset, bytes } = log.read(at, usize::MAX) {
            prop_assert_eq!(offset, at);
            at += bytes.len() as u64;
            have.extend(bytes);
        }
        prop_assert_eq!(log.read(at, 1), LogRead::AtEnd);
        prop_assert_eq!(&have[..], &reference.all[reference.oldest() as usize..]);
    }
}

fn check(log: &mut ByteLog, reference: &Reference, at: u64, max: usize) -> Result<(), TestCaseError> {
    let end = reference.all.len() as u64;
    match log.read(at, max) {
        LogRead::Gap { from, to } => {
            prop_assert!(at < reference.oldest());
            prop_assert_eq!((from, to), (at, reference.oldest()));
        }
        LogRead::Data { offset, bytes } => {
            prop_assert!(at >= reference.oldest() && at < end);
            prop_assert_eq!(offset, at);
            prop_assert!(!bytes.is_empty() && bytes.len() <= max.max(1) && bytes.len() <= CHUNK_BYTES);
            prop_assert_eq!(&bytes[..], &reference.all[at as usize..at as usize + bytes.len()]);
        }
        LogRead::AtEnd => prop_assert_eq!(at, end),
        LogRead::Beyond => prop_assert!(at > end),
    }
    Ok(())
}

#[test]
fn readers_share_the_bytes_of_a_flood() {
    let mut log = ByteLog::new(1, 1 << 20);
    (0..100).for_each(|_| log.push(&[7; 4095]));
    let (LogRead::Data { bytes: one, .. }, LogRead::Data { bytes: other, .. }) =
        (log.read(200_000, 50_000), log.read(200_000, 50_000))
    else {
        panic!("no data")
    };
    assert_eq!(one.as_ptr(), other.as_ptr(), "a slice of the log, not a copy");
}

#[test]
fn idle_log_allocates_at_most_one_small_chunk() {
    let mut log = ByteLog::new(1, 1 << 20);
    assert_eq!((log.open.capacity(), log.closed.capacity()), (0, 0));
    // A prompt that is read byte by byte as it is printed.
    for at in 0..200 {
        log.push(b"$");
        assert!(matches!(log.read(at, 100), LogRead::Data { .. }));
    }
    assert!(log.open.capacity() <= 1024, "{}", log.open.capacity());
    assert!(log.closed.is_empty(), "small reads cut nothing up");
}

#[test]
fn allocation_stays_near_capacity() {
    let mut log = ByteLog::new(1, 256 * 1024);
    for i in 0..200_000_u32 {
        log.push(&[b'x'; 37]);
        if i % 3 == 0 {
            let _read = log.read(log.next() - 30, 100);
        }
    }
    let closed: usize = log.closed.iter().map(|c| c.bytes.len()).sum();
    assert!(closed + log.open.capacity() <= 256 * 1024 + 2 * CHUNK_BYTES);
    assert!(log.closed.len() <= 80, "{} chunks", log.closed.len());
}

#[test]
fn cleared_log_is_empty_and_offsets_continue() {
    let mut log = ByteLog::new(1, 100);
    log.push(b"0123456789");
    log.read(0, 4);
    log.clear();
    assert_eq!((log.oldest(), log.next()), (10, 10));
    assert_eq!(log.read(3, 100), LogRead::Gap { from: 3, to: 10 });
    log.push(b"ab");
    assert_eq!(log.read(10, 100), LogRead::Data { offset: 10, bytes: Bytes::from_static(b"ab") });
}

#[test]
fn capacity_ends_before_the_first_required_byte() {
    let mut log = ByteLog::new(1, 10);
    log.push(b"0123456789");
    assert_eq!(log.capacity_from(0), 0);
    assert_eq!(log.capacity_from(4), 4);
    assert_eq!(log.capacity_from(u64::MAX), 10, "no byte is required");
    log.push(b"0123");
    assert_eq!(log.capacity_from(0), 0, "evicted bytes do not count");
    log.clear();
    assert_eq!(log.capacity_from(0), 10);
}

proptest! {
    #[test]
    fn filling_capacity_never_loses_required_bytes(
        max in 1usize..300,
        pushes in prop::collection::vec((0usize..400, 0u64..400), 1..30),
    ) {
        let mut log = ByteLog::new(1, max);
        let mut taken = 0;
        for (offered, read) in pushes {
            log.push(&vec![0; offered.min(log.capacity_from(taken))]);
            prop_assert!(log.oldest() <= taken);
            taken = (taken + read).min(log.next());
        }
    }
}
