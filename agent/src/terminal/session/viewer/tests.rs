//! Tests of the wait for lossless viewers.

use super::*;
use crate::{byte_log::ByteLog, terminal::types::WindowSize};

const HELD: usize = 1024 * 1024;

/// Creates a terminal with a full log, and lossless viewers at these offsets that last made
/// progress at `last_progress`.
fn read_at(offsets: &[u64], last_progress: Instant) -> TerminalState {
    let mut log = ByteLog::new(1, HELD);
    log.push(&vec![b'x'; HELD]);
    let mut state = TerminalState::new(log, WindowSize::default());
    for (id, at) in offsets.iter().enumerate() {
        let slot = ViewerSlot {
            wake: Arc::default(),
            cursor: Some(*at),
            acked: *at,
            credit: 0,
            lossless: true,
            last_progress,
        };
        state.viewers.insert(id as u64, slot);
    }
    state
}

#[test]
fn only_the_stalled_lossless_viewer_is_given_up() {
    let begin = Instant::now();
    let mut state = read_at(&[0, HELD as u64], begin);
    assert_eq!(state.pause_for_readers(begin), Some(begin + LOSSLESS_TIMEOUT));
    let short = begin + LOSSLESS_TIMEOUT - Duration::from_millis(1);
    assert_eq!(state.pause_for_readers(short), Some(begin + LOSSLESS_TIMEOUT));
    assert_eq!(state.pause_for_readers(begin + LOSSLESS_TIMEOUT), None);
    assert!(!state.viewers[&0].lossless, "the stalled viewer is no longer lossless");
    assert!(state.viewers[&1].lossless, "the viewer that has read everything stays lossless");
}

#[test]
fn lossless_timeout_starts_when_the_wait_starts() {
    // Nothing was printed for an hour, and then more than the log's capacity.
    let long_ago = Instant::now();
    let now = long_ago + Duration::from_secs(3600);
    let mut state = read_at(&[0], long_ago);
    assert_eq!(state.pause_for_readers(now), Some(now + LOSSLESS_TIMEOUT));
    assert!(state.viewers[&0].lossless);
}
