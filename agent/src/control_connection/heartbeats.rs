//! The pace of heartbeats on one stream: when the next one is due, and since when one waits for its acknowledgement.
//!
//! A changed verdict is told at once. An intent while the verdict is `active` already waits for the next beat: what the control
//! plane knows of the last intent is never older than one interval. Pure: clock and chance are arguments.

use std::time::{Duration, Instant};

use crate::activity::assessment::ActivityLevel;

/// A beat that is not acknowledged for this many intervals means a dead link.
const MAX_UNACKNOWLEDGED_INTERVALS: u32 = 3;
/// By how much of it an interval varies, up and down: agents that started together do not beat together.
const JITTER: f64 = 0.1;
/// Edges are told at once, but not more often than this.
const MIN_CHANGE_INTERVAL: Duration = Duration::from_secs(1);

/// The beats of one stream; none are due before it has brought a claim.
#[derive(Debug, Default)]
pub(super) struct HeartbeatSchedule {
    sent: u64,
    next: Option<Instant>,
    last: Option<(Instant, ActivityLevel)>,
    waiting: Option<Instant>,
    acknowledged: bool,
}

/// How long a link without acknowledgements is kept.
pub(super) fn acknowledgement_timeout(interval: Duration) -> Duration {
    interval * MAX_UNACKNOWLEDGED_INTERVALS
}

impl HeartbeatSchedule {
    /// The claim is an edge; a repeated one keeps the pace, unless it asks for a faster one.
    pub(super) fn start(&mut self, now: Instant, interval: Duration) {
        self.next = Some(self.next.map_or(now, |due| due.min(now + interval)));
    }

    /// When the next one is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.next
    }

    pub(super) fn next_sequence(&self) -> u64 {
        self.sent + 1
    }

    /// It was sent, with this verdict. `chance` is in 0..1.
    pub(super) fn sent(&mut self, verdict: ActivityLevel, now: Instant, interval: Duration, chance: f64) {
        self.sent += 1;
        self.last = Some((now, verdict));
        self.waiting.get_or_insert(now);
        self.next = Some(now + interval.mul_f64(1.0 - JITTER + 2.0 * JITTER * chance));
    }

    /// `false` if it was never sent.
    pub(super) fn acknowledged(&mut self, sequence: u64, now: Instant) -> bool {
        if sequence > self.sent {
            return false;
        }
        self.acknowledged = true;
        // An older one is a sign of life too.
        self.waiting = (sequence < self.sent).then_some(now);
        true
    }

    /// Whether one ever was.
    pub(super) fn was_acknowledged(&self) -> bool {
        self.acknowledged
    }

    /// Since when nothing was drained although a beat waits for its acknowledgement.
    pub(super) fn unacknowledged_since(&self) -> Option<Instant> {
        self.waiting
    }

    /// A changed verdict is told at once.
    pub(super) fn activity_changed(&mut self, verdict: ActivityLevel, now: Instant) {
        if let (Some((at, told)), Some(due)) = (self.last, self.next)
            && told != verdict
        {
            self.next = Some(due.min((at + MIN_CHANGE_INTERVAL).max(now)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(15);

    #[test]
    fn beats_come_in_their_interval_and_edges_at_once_but_for_a_pause() {
        let (mut heartbeats, start) = (HeartbeatSchedule::default(), Instant::now());
        heartbeats.activity_changed(ActivityLevel::Active, start);
        assert_eq!(heartbeats.next(), None, "nobody has claimed it");
        heartbeats.start(start, INTERVAL);
        assert_eq!(heartbeats.next(), Some(start));
        heartbeats.sent(ActivityLevel::Idle, start, INTERVAL, 0.0);
        assert_eq!(heartbeats.next(), Some(start + INTERVAL.mul_f64(0.9)));
        heartbeats.sent(ActivityLevel::Idle, start, INTERVAL, 1.0);
        let due = heartbeats.next().unwrap();
        assert_eq!(due, start + INTERVAL.mul_f64(1.1));
        heartbeats.start(start, 2 * INTERVAL);
        heartbeats.activity_changed(ActivityLevel::Idle, start + MIN_CHANGE_INTERVAL);
        assert_eq!(
            heartbeats.next(),
            Some(due),
            "neither a repeated claim nor what was told already changes the pace"
        );
        heartbeats.activity_changed(ActivityLevel::Active, start + MIN_CHANGE_INTERVAL / 4);
        assert_eq!(heartbeats.next(), Some(start + MIN_CHANGE_INTERVAL));
        heartbeats.activity_changed(ActivityLevel::Busy, start + MIN_CHANGE_INTERVAL * 3);
        assert_eq!(heartbeats.next(), Some(start + MIN_CHANGE_INTERVAL), "what is due is due");
        heartbeats.start(start, MIN_CHANGE_INTERVAL / 2);
        assert_eq!(
            heartbeats.next(),
            Some(start + MIN_CHANGE_INTERVAL / 2),
            "another policy asks for a faster pace"
        );
    }

    #[test]
    fn silence_begins_with_the_first_beat_that_is_not_acknowledged_and_with_each_sign_of_life() {
        let (mut heartbeats, start) = (HeartbeatSchedule::default(), Instant::now());
        let at = |n: u32| start + INTERVAL * n;
        heartbeats.start(start, INTERVAL);
        assert_eq!(heartbeats.unacknowledged_since(), None);
        for n in 0..2 {
            heartbeats.sent(ActivityLevel::Idle, at(n), INTERVAL, 0.5);
        }
        assert_eq!(heartbeats.unacknowledged_since(), Some(start));
        assert!(
            !heartbeats.acknowledged(3, at(2)) && !heartbeats.was_acknowledged(),
            "one that was never sent"
        );
        assert!(heartbeats.acknowledged(1, at(2)) && heartbeats.was_acknowledged());
        assert_eq!(heartbeats.unacknowledged_since(), Some(at(2)));
        assert!(heartbeats.acknowledged(2, at(2)));
        assert_eq!(heartbeats.unacknowledged_since(), None);
    }
}
