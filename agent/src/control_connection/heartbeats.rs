//! Schedules the heartbeats of one stream, and detects missing acknowledgements.
//!
//! A changed activity level, or a change of whether the workspace's command fails, is reported at
//! once, but at most once per second. A further intent
//! while the level is `active` waits for the next heartbeat, so the control plane's time of the
//! last intent is at most one interval old. Pure; clock and randomness are arguments.

use std::time::{Duration, Instant};

use crate::activity::UrgentActivity;

/// Intervals without an acknowledgement after which the connection counts as dead.
const MAX_UNACKNOWLEDGED_INTERVALS: u32 = 3;
/// Fraction by which an interval varies randomly, up or down. Spreads the heartbeats of agents that
/// started together.
const JITTER: f64 = 0.1;
/// Minimum time between two heartbeats that report a changed level.
const MIN_CHANGE_INTERVAL: Duration = Duration::from_secs(1);

/// Heartbeat times of one stream. No heartbeat is due before the stream has delivered a claim.
#[derive(Debug, Default)]
pub(super) struct HeartbeatSchedule {
    sent: u64,
    next: Option<Instant>,
    last: Option<(Instant, UrgentActivity)>,
    waiting: Option<Instant>,
    acknowledged: bool,
}

/// Returns the time without an acknowledgement after which the connection is closed.
pub(super) fn acknowledgement_timeout(interval: Duration) -> Duration {
    interval * MAX_UNACKNOWLEDGED_INTERVALS
}

impl HeartbeatSchedule {
    /// Makes the first heartbeat due at once. After a repeated claim the next heartbeat stays due
    /// as before, or earlier if the new interval is shorter.
    pub(super) fn start(&mut self, now: Instant, interval: Duration) {
        self.next = Some(self.next.map_or(now, |due| due.min(now + interval)));
    }

    /// Returns the time of the next heartbeat, or `None` before the first claim.
    pub(super) fn next(&self) -> Option<Instant> {
        self.next
    }

    pub(super) fn next_sequence(&self) -> u64 {
        self.sent + 1
    }

    /// Records a sent heartbeat and what it reported, and schedules the next. `chance` is in 0..1.
    pub(super) fn sent(&mut self, urgent: UrgentActivity, now: Instant, interval: Duration, chance: f64) {
        self.sent += 1;
        self.last = Some((now, urgent));
        self.waiting.get_or_insert(now);
        self.next = Some(now + interval.mul_f64(1.0 - JITTER + 2.0 * JITTER * chance));
    }

    /// Records an acknowledgement. Returns `false` if a heartbeat with this number was never sent.
    pub(super) fn acknowledged(&mut self, sequence: u64, now: Instant) -> bool {
        if sequence > self.sent {
            return false;
        }
        self.acknowledged = true;
        // The acknowledgement of an older heartbeat also proves that the control plane is alive.
        self.waiting = (sequence < self.sent).then_some(now);
        true
    }

    pub(super) fn was_acknowledged(&self) -> bool {
        self.acknowledged
    }

    /// Returns the time since which an acknowledgement is missing. `None` if the newest heartbeat
    /// is acknowledged.
    pub(super) fn unacknowledged_since(&self) -> Option<Instant> {
        self.waiting
    }

    /// Makes the next heartbeat due early if this differs from what the last one reported.
    pub(super) fn activity_changed(&mut self, urgent: UrgentActivity, now: Instant) {
        if let (Some((at, reported)), Some(due)) = (self.last, self.next)
            && reported != urgent
        {
            self.next = Some(due.min((at + MIN_CHANGE_INTERVAL).max(now)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activity::assessment::ActivityLevel;

    const INTERVAL: Duration = Duration::from_secs(15);

    fn at_level(level: ActivityLevel) -> UrgentActivity {
        UrgentActivity { level, command_fails: false }
    }

    #[test]
    fn heartbeats_keep_interval_and_report_level_changes_early() {
        let (mut heartbeats, start) = (HeartbeatSchedule::default(), Instant::now());
        heartbeats.activity_changed(at_level(ActivityLevel::Active), start);
        assert_eq!(heartbeats.next(), None, "not claimed yet");
        heartbeats.start(start, INTERVAL);
        assert_eq!(heartbeats.next(), Some(start));
        heartbeats.sent(at_level(ActivityLevel::Idle), start, INTERVAL, 0.0);
        assert_eq!(heartbeats.next(), Some(start + INTERVAL.mul_f64(0.9)));
        heartbeats.sent(at_level(ActivityLevel::Idle), start, INTERVAL, 1.0);
        let due = heartbeats.next().unwrap();
        assert_eq!(due, start + INTERVAL.mul_f64(1.1));
        heartbeats.start(start, 2 * INTERVAL);
        heartbeats.activity_changed(at_level(ActivityLevel::Idle), start + MIN_CHANGE_INTERVAL);
        assert_eq!(
            heartbeats.next(),
            Some(due),
            "neither a repeated claim nor an unchanged level changes the schedule"
        );
        heartbeats.activity_changed(at_level(ActivityLevel::Active), start + MIN_CHANGE_INTERVAL / 4);
        assert_eq!(heartbeats.next(), Some(start + MIN_CHANGE_INTERVAL));
        heartbeats.activity_changed(at_level(ActivityLevel::Busy), start + MIN_CHANGE_INTERVAL * 3);
        assert_eq!(heartbeats.next(), Some(start + MIN_CHANGE_INTERVAL), "an earlier due time stays");
        let mut failing = HeartbeatSchedule::default();
        failing.sent(at_level(ActivityLevel::Idle), start, INTERVAL, 0.5);
        failing.activity_changed(
            UrgentActivity { level: ActivityLevel::Idle, command_fails: true },
            start + MIN_CHANGE_INTERVAL,
        );
        assert_eq!(failing.next(), Some(start + MIN_CHANGE_INTERVAL), "a failing command is reported early");
        heartbeats.start(start, MIN_CHANGE_INTERVAL / 2);
        assert_eq!(
            heartbeats.next(),
            Some(start + MIN_CHANGE_INTERVAL / 2),
            "a shorter interval of a new policy applies at once"
        );
    }

    #[test]
    fn silence_starts_at_first_unacknowledged_heartbeat() {
        let (mut heartbeats, start) = (HeartbeatSchedule::default(), Instant::now());
        let at = |n: u32| start + INTERVAL * n;
        heartbeats.start(start, INTERVAL);
        assert_eq!(heartbeats.unacknowledged_since(), None);
        for n in 0..2 {
            heartbeats.sent(at_level(ActivityLevel::Idle), at(n), INTERVAL, 0.5);
        }
        assert_eq!(heartbeats.unacknowledged_since(), Some(start));
        assert!(
            !heartbeats.acknowledged(3, at(2)) && !heartbeats.was_acknowledged(),
            "a heartbeat that was never sent"
        );
        assert!(heartbeats.acknowledged(1, at(2)) && heartbeats.was_acknowledged());
        assert_eq!(heartbeats.unacknowledged_since(), Some(at(2)));
        assert!(heartbeats.acknowledged(2, at(2)));
        assert_eq!(heartbeats.unacknowledged_since(), None);
    }
}
