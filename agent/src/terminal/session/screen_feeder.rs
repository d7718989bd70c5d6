//! Decides when the screen model is fed, and when reads of a flooding PTY are held so that the
//! model can catch up.
//!
//! The model is slower than a PTY and uses the time that reading leaves. A flood leaves none. When
//! a snapshot has been requested for 50 ms, reads are therefore held until the model has processed
//! everything. The snapshot then shows the screen at exactly its offset, and the output continues
//! from there without a gap.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use super::{Terminal, TerminalState};
use crate::terminal::{screen::ScreenModel, types::WindowSize};

/// Time for which the model is fed before other tasks run.
const FEED_SLICE: Duration = Duration::from_millis(1);
/// Pause after each feed, as a multiple of the duration of the feed. Without a snapshot request the
/// model uses at most a tenth of the time.
const FEED_REST_FACTOR: u32 = 9;
/// Silence after which the model processes output again, if output was evicted before the model
/// read it.
const FEED_QUIET: Duration = Duration::from_millis(50);
/// Age of a snapshot request at which reads are held.
const HOLD_AFTER: Duration = Duration::from_millis(50);
/// Time after a snapshot in which reads are not held, so that many slow viewers cannot starve the
/// PTY.
const HOLD_INTERVAL: Duration = Duration::from_millis(250);
/// Limit on bytes fed during a hold, which take 15 to 50 ms in a window of usual size. If the model
/// lags by more, it skips to the newest output.
const MAX_HOLD_BYTES: u64 = 512 * 1024;

/// The screen model and its schedule.
#[derive(Debug)]
pub(super) struct ScreenFeeder {
    model: ScreenModel,
    /// Without a snapshot request the model is not fed before this time.
    rest_until: Instant,
    /// Time of the oldest request that is not fulfilled.
    requested_since: Option<Instant>,
    /// Reads are not held before this time.
    hold_allowed_from: Instant,
}

/// Next step for the screen model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum FeedDecision {
    /// Nothing is due until the terminal changes.
    #[default]
    Idle,
    /// Nothing is due until this time.
    WaitUntil(Instant),
    /// The model is fed with the time that reading leaves.
    Feed,
    /// Reads are held, and the model is fed until it has processed everything.
    HoldReads,
}

impl ScreenFeeder {
    pub(super) fn new(size: WindowSize, now: Instant) -> Self {
        Self { model: ScreenModel::new(size), rest_until: now, requested_since: None, hold_allowed_from: now }
    }

    /// Decides whether to feed the model. It is fed for a snapshot request, and before bytes that
    /// it has not processed are evicted.
    pub(super) fn decide(
        &mut self,
        state: &mut TerminalState,
        now: Instant,
        last_read: Instant,
    ) -> FeedDecision {
        for (at, size) in state.resizes.drain(..) {
            self.model.resized(at, size);
        }
        if state.snapshots.is_open() {
            let since = *self.requested_since.get_or_insert(now);
            // A terminal whose session was killed is about to end. Its last read must not be held.
            let reads = state.lifecycle.pty().is_some() && !state.lifecycle.is_draining();
            let holds = reads && now >= self.hold_allowed_from.max(since + HOLD_AFTER);
            return if holds { FeedDecision::HoldReads } else { FeedDecision::Feed };
        }
        if state.lifecycle.exited().is_some()
            || self.model.unseen_bytes(&state.log) <= state.log.max_bytes() as u64 / 2
        {
            return FeedDecision::Idle;
        }
        let quiet = if self.model.has_gap(&state.log) { last_read + FEED_QUIET } else { now };
        let from = self.rest_until.max(quiet);
        if from > now { FeedDecision::WaitUntil(from) } else { FeedDecision::Feed }
    }

    /// Feeds the model for one time slice. Takes the requested snapshot once the model has
    /// processed everything. Returns how often the model panicked.
    pub(super) fn feed(&mut self, decision: FeedDecision, terminal: &Terminal) -> u64 {
        let begin = Instant::now();
        let until = begin + FEED_SLICE;
        let too_far = if decision == FeedDecision::HoldReads { MAX_HOLD_BYTES } else { u64::MAX };
        let mut panics = 0;
        loop {
            let next = {
                let state = &mut *terminal.state();
                if self.model.has_gap(&state.log) || self.model.unseen_bytes(&state.log) > too_far {
                    self.model.skip_ahead(&state.log);
                }
                self.model.next(&mut state.log)
            };
            let Some(bytes) = next else {
                panics += u64::from(!self.take_snapshot(&mut terminal.state()));
                break;
            };
            let model = &mut self.model;
            if catch_unwind(AssertUnwindSafe(|| model.feed(&bytes))).is_err() {
                self.reset_model(&terminal.state());
                panics += 1;
            }
            if Instant::now() >= until {
                break;
            }
        }
        self.rest_until = Instant::now() + begin.elapsed() * FEED_REST_FACTOR;
        panics
    }

    /// Answers an open request for a snapshot. Returns false if the model panicked.
    fn take_snapshot(&mut self, state: &mut TerminalState) -> bool {
        if !state.snapshots.is_open() {
            return true;
        }
        self.hold_allowed_from = Instant::now() + HOLD_INTERVAL;
        let model = &mut self.model;
        let Ok(snapshot) = catch_unwind(AssertUnwindSafe(|| model.snapshot())) else {
            self.reset_model(state);
            return false;
        };
        state.snapshots.answer(snapshot);
        self.requested_since = None;
        state.wake_viewers();
        true
    }

    /// Replaces the model by an empty one at the end of the log. Output is arbitrary, so a panic of
    /// the emulator must cost only the snapshot and not the terminal.
    fn reset_model(&mut self, state: &TerminalState) {
        self.model = ScreenModel::at_end(state.size.value, &state.log);
    }
}
