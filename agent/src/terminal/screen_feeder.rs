//! ScreenFeeder: when the screen model is fed, and when the reading of a flood is held so that it can be.
//!
//! An emulator is slower than a PTY. It gets the time that reading leaves; a terminal that floods leaves none, so once a picture has
//! been wanted for a while, reading is held until the model has seen everything that was read: then the picture is exact for its
//! offset and the bytes after it follow without a hole. Must not know what the model shows, nor how the PTY is read.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Terminal, WindowSize, counters::TerminalCounters, screen::ScreenModel, state::TerminalState};

/// How long the model is fed before others have their turn.
const FEED_SLICE: Duration = Duration::from_millis(1);
/// Without anybody waiting for a picture the model takes at most one part in ten of the time.
const FEED_REST_FACTOR: u32 = 9;
/// …and a model that was left behind catches up when the terminal was quiet for so long.
const FEED_QUIET: Duration = Duration::from_millis(50);
/// A picture that has been wanted for so long holds the reading.
const HOLD_AFTER: Duration = Duration::from_millis(50);
/// …and after it a flood is read for so long before the next one does: a crowd of slow viewers cannot starve it.
const HOLD_INTERVAL: Duration = Duration::from_millis(250);
/// Fed while reading is held, at most; of more the model skips all but the newest. It takes 15 to 50 ms in a usual window.
const MAX_HOLD_BYTES: u64 = 512 * 1024;

/// The model, and when it had its turns.
#[derive(Debug)]
pub(super) struct ScreenFeeder {
    model: ScreenModel,
    /// Without a picture being wanted the model rests until then.
    rest_until: Instant,
    /// A picture has been wanted since then.
    requested_since: Option<Instant>,
    /// Reading is not held before.
    hold_allowed_from: Instant,
}

/// What the model needs now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FeedDecision {
    /// Nothing.
    Idle,
    /// To be looked at then.
    WaitUntil(Instant),
    /// To be fed with the time that is left.
    Feed,
    /// To be fed, and nothing to be read before it has seen everything.
    HoldReads,
}

impl ScreenFeeder {
    pub(super) fn new(size: WindowSize, now: Instant) -> Self {
        Self { model: ScreenModel::new(size), rest_until: now, requested_since: None, hold_allowed_from: now }
    }

    /// The model is fed when a picture is asked for, and before bytes it has not seen are gone.
    pub(super) fn decide(
        &mut self,
        state: &mut TerminalState,
        now: Instant,
        last_read: Instant,
    ) -> FeedDecision {
        for (at, size) in state.resizes.drain(..) {
            self.model.resized(at, size);
        }
        if state.snapshots_requested > state.snapshots_taken {
            let since = *self.requested_since.get_or_insert(now);
            // Once its session was killed, a terminal is about to end: then nobody reads.
            let reads = state.pty.is_some() && !state.killed;
            let holds = reads && now >= self.hold_allowed_from.max(since + HOLD_AFTER);
            return if holds { FeedDecision::HoldReads } else { FeedDecision::Feed };
        }
        if state.exit.is_some() || self.model.unseen_bytes(&state.log) <= state.log.max_bytes() as u64 / 2 {
            return FeedDecision::Idle;
        }
        let quiet = if self.model.has_gap(&state.log) { last_read + FEED_QUIET } else { now };
        let from = self.rest_until.max(quiet);
        if from > now { FeedDecision::WaitUntil(from) } else { FeedDecision::Feed }
    }

    /// Feeds the model for a slice of time, and makes the picture that was asked for once it has seen everything.
    pub(super) fn feed(&mut self, decision: FeedDecision, terminal: &Terminal, counters: &TerminalCounters) {
        let begin = Instant::now();
        let until = begin + FEED_SLICE;
        let too_far = if decision == FeedDecision::HoldReads { MAX_HOLD_BYTES } else { u64::MAX };
        loop {
            let next = {
                let state = &mut *terminal.state();
                if self.model.has_gap(&state.log) || self.model.unseen_bytes(&state.log) > too_far {
                    self.model.skip_ahead(&state.log);
                }
                self.model.next(&mut state.log)
            };
            let Some(bytes) = next else {
                self.take_snapshot(&mut terminal.state(), counters);
                break;
            };
            let model = &mut self.model;
            if catch_unwind(AssertUnwindSafe(|| model.feed(&bytes))).is_err() {
                self.reset_model(&terminal.state(), counters);
            }
            if Instant::now() >= until {
                break;
            }
        }
        self.rest_until = Instant::now() + begin.elapsed() * FEED_REST_FACTOR;
    }

    fn take_snapshot(&mut self, state: &mut TerminalState, counters: &TerminalCounters) {
        if state.snapshots_requested == state.snapshots_taken {
            return;
        }
        self.hold_allowed_from = Instant::now() + HOLD_INTERVAL;
        let model = &mut self.model;
        match catch_unwind(AssertUnwindSafe(|| model.snapshot())) {
            Ok(snapshot) => {
                state.snapshot = Some(Arc::new(snapshot));
                state.snapshots_taken = state.snapshots_requested;
                self.requested_since = None;
                state.wake_viewers();
            }
            Err(_) => self.reset_model(state, counters),
        }
    }

    /// An emulator is a large thing to feed with what anybody prints: its panic costs the picture, not the terminal. A new one goes on
    /// behind what it choked on.
    fn reset_model(&mut self, state: &TerminalState, counters: &TerminalCounters) {
        self.model = ScreenModel::at_end(state.size.value, &state.log);
        counters.model_panicked();
    }
}
