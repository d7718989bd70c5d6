//! Assesses whether the workspace is active, busy or idle, and with which evidence.
//!
//! The assessment is a pure function of inputs, policy and time.

use std::{
    cmp::Reverse,
    time::{Duration, Instant},
};

pub use podling_proto::agent::v1::ActivityLevel;

use crate::{admission::Intent, claim::AgentPolicy};

/// Kind of a signal that the workspace is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ActivitySignal {
    /// A user or client acted on the workspace.
    Intent(Intent),
    /// A client waits for a call.
    ClientCall,
    /// A keep-awake lease that has not expired.
    Lease,
    /// CPU use at or above the policy's threshold.
    Cpu,
    /// Bytes read and written at or above the policy's threshold.
    Io,
    ForegroundJob,
}

/// A signal other than an intent.
#[derive(Debug, Clone, PartialEq)]
pub struct ObservedSignal {
    pub signal: ActivitySignal,
    /// English text for display, such as `vim in terminal 'main'`.
    pub detail: String,
    pub last_seen: Instant,
    /// Fixed end of the signal, such as a lease's expiry.
    pub until: Option<Instant>,
}

/// Everything that the assessment depends on besides policy and time.
#[derive(Debug, Clone, PartialEq)]
pub struct ActivityInputs {
    /// Time of the claim, or of the agent's start before the claim. Caps start at this time until
    /// the first intent.
    pub claimed: Instant,
    /// Time of the last intent of each kind.
    pub intents: Vec<(Intent, Instant)>,
    /// All other current signals. CPU and IO are present only at or above the policy's thresholds.
    pub observed: Vec<ObservedSignal>,
}

/// A signal with its age, and whether it still counts.
#[derive(Debug, Clone, PartialEq)]
pub struct ActivityEvidence {
    pub signal: ActivitySignal,
    pub detail: String,
    /// Time since the signal was last observed.
    pub age: Duration,
    /// Time for which the signal still counts if it is not observed again.
    pub holds_for: Duration,
    /// Whether the signal no longer counts, because its cap is reached or its time is over. Such a
    /// signal is still shown.
    pub capped: bool,
}

/// An activity level with its evidence. Evidence that counts comes first, strongest first.
#[derive(Debug, Clone, PartialEq)]
pub struct ActivityAssessment {
    pub level: ActivityLevel,
    pub evidence: Vec<ActivityEvidence>,
}

// === impl ActivityInputs ===

impl ActivityInputs {
    /// Returns the start of the caps, which is the time of the last intent or of the claim.
    pub fn anchor(&self) -> Instant {
        self.intents.iter().map(|(_, at)| *at).fold(self.claimed, Instant::max)
    }
}

// === impl ActivityAssessment ===

impl ActivityAssessment {
    pub fn assess(signals: &ActivityInputs, policy: &AgentPolicy, now: Instant) -> Self {
        let anchor = signals.anchor();
        let intents = signals.intents.iter().map(|(intent, at)| {
            evidence(
                ActivitySignal::Intent(*intent),
                intent.describe().to_owned(),
                *at,
                *at + policy.active_for,
                now,
            )
        });
        let observed = signals.observed.iter().map(|observed| {
            let cap = match observed.signal {
                ActivitySignal::Cpu | ActivitySignal::Io => anchor + policy.work_cap,
                ActivitySignal::ForegroundJob => anchor + policy.presence_cap,
                ActivitySignal::Lease | ActivitySignal::ClientCall => observed.until.unwrap_or(now),
                // Intents are not in `observed`. If one were, it would count like any intent.
                ActivitySignal::Intent(_) => observed.last_seen + policy.active_for,
            };
            let until = observed.until.map_or(cap, |until| until.min(cap));
            evidence(observed.signal, observed.detail.clone(), observed.last_seen, until, now)
        });
        let mut evidence: Vec<_> = intents.chain(observed).collect();
        evidence.sort_by_key(|e| (e.capped, Reverse(level_of(e.signal)), Reverse(e.holds_for)));
        let level = evidence
            .iter()
            .find(|e| !e.capped)
            .map_or(ActivityLevel::Idle, |strongest| level_of(strongest.signal));
        Self { level, evidence }
    }

    /// Returns whether the workspace is in use: active or busy.
    pub fn in_use(&self) -> bool {
        self.level.in_use() == Some(true)
    }

    /// Returns the time until one of the signals that count now stops to count, unless it is
    /// observed again. `None` if no signal counts.
    pub fn next_change_in(&self) -> Option<Duration> {
        self.evidence.iter().filter(|e| !e.capped).map(|e| e.holds_for).min()
    }

    /// Returns whether a watcher sees no difference between the assessments. Ignores the ages and
    /// the remaining times.
    pub fn is_equivalent(&self, other: &Self) -> bool {
        let essence =
            |a: &Self| a.evidence.iter().map(|e| (e.signal, e.detail.clone(), e.capped)).collect::<Vec<_>>();
        self.level == other.level && essence(self) == essence(other)
    }
}

fn evidence(
    signal: ActivitySignal,
    detail: String,
    seen: Instant,
    until: Instant,
    now: Instant,
) -> ActivityEvidence {
    let holds_for = until.saturating_duration_since(now);
    let age = now.saturating_duration_since(seen);
    ActivityEvidence { signal, detail, age, holds_for, capped: holds_for.is_zero() }
}

/// Returns the level if this signal is the only one that counts.
fn level_of(signal: ActivitySignal) -> ActivityLevel {
    match signal {
        ActivitySignal::Intent(_) | ActivitySignal::ClientCall => ActivityLevel::Active,
        ActivitySignal::Lease | ActivitySignal::Cpu | ActivitySignal::Io | ActivitySignal::ForegroundJob => {
            ActivityLevel::Busy
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const KINDS: [ActivitySignal; 5] = [
        ActivitySignal::Lease,
        ActivitySignal::ClientCall,
        ActivitySignal::Cpu,
        ActivitySignal::Io,
        ActivitySignal::ForegroundJob,
    ];
    /// Signals that end at a time of their own, not at a cap after the last intent.
    const TIMED: [ActivitySignal; 2] = [ActivitySignal::Lease, ActivitySignal::ClientCall];

    fn observed_signal(signal: ActivitySignal, at: Instant) -> ObservedSignal {
        let until = TIMED.contains(&signal).then(|| at + HOUR);
        ObservedSignal { signal, detail: "x".into(), last_seen: at, until }
    }

    fn no_inputs(claimed: Instant) -> ActivityInputs {
        ActivityInputs { claimed, intents: vec![], observed: vec![] }
    }

    #[test]
    fn keystroke_counts_as_active_for_one_minute() {
        let start = Instant::now();
        let signals = ActivityInputs { intents: vec![(Intent::Keystroke, start)], ..no_inputs(start) };
        let at =
            |s| ActivityAssessment::assess(&signals, &AgentPolicy::default(), start + Duration::from_secs(s));
        assert_eq!(at(59).level, ActivityLevel::Active);
        assert_eq!(at(59).next_change_in(), Some(Duration::from_secs(1)));
        assert_eq!(at(60).level, ActivityLevel::Idle);
        assert!(at(60).evidence[0].capped, "still evidence, but no longer counted");
    }

    #[test]
    fn foreground_job_counts_1_h_and_cpu_work_12_h() {
        let start = Instant::now();
        let job = ActivityInputs {
            observed: vec![observed_signal(ActivitySignal::ForegroundJob, start)],
            ..no_inputs(start)
        };
        let cpu = ActivityInputs {
            observed: vec![observed_signal(ActivitySignal::Cpu, start)],
            ..no_inputs(start)
        };
        let at = |s: &ActivityInputs, after| {
            ActivityAssessment::assess(s, &AgentPolicy::default(), start + after).level
        };
        let second = Duration::from_secs(1);
        assert_eq!(at(&job, HOUR - second), ActivityLevel::Busy);
        assert_eq!(at(&job, HOUR), ActivityLevel::Idle);
        assert_eq!(at(&cpu, 12 * HOUR - second), ActivityLevel::Busy);
        assert_eq!(at(&cpu, 12 * HOUR), ActivityLevel::Idle);
    }

    #[test]
    fn keystroke_restarts_caps() {
        let start = Instant::now();
        let mut signals = ActivityInputs {
            observed: vec![observed_signal(ActivitySignal::ForegroundJob, start)],
            ..no_inputs(start)
        };
        signals.intents.push((Intent::Keystroke, start + 2 * HOUR));
        let later =
            ActivityAssessment::assess(&signals, &AgentPolicy::default(), start + 2 * HOUR + HOUR / 2);
        assert_eq!(later.level, ActivityLevel::Busy);
        assert_eq!(later.evidence[0].holds_for, HOUR / 2);
    }

    #[test]
    fn lease_is_busy_exactly_until_expiry() {
        let start = Instant::now();
        let signals = ActivityInputs {
            observed: vec![observed_signal(ActivitySignal::Lease, start)],
            ..no_inputs(start)
        };
        let at = |after| ActivityAssessment::assess(&signals, &AgentPolicy::default(), start + after).level;
        assert_eq!(at(HOUR - Duration::from_nanos(1)), ActivityLevel::Busy);
        assert_eq!(at(HOUR), ActivityLevel::Idle);
    }

    fn signals() -> impl Strategy<Value = (ActivityInputs, Instant)> {
        let intents = prop::collection::vec((0usize..3, 0u64..100_000), 0..4);
        let observed = prop::collection::vec((0..KINDS.len(), 0u64..100_000, 0u64..100_000), 0..6);
        (intents, observed, 0u64..100_000).prop_map(|(intents, observed, now)| {
            let start = Instant::now();
            let at = |s: u64| start + Duration::from_secs(s);
            let kinds = [Intent::Keystroke, Intent::ClientWrite, Intent::ClientStart];
            let signals = ActivityInputs {
                claimed: start,
                intents: intents.into_iter().map(|(k, s)| (kinds[k], at(s.min(now)))).collect(),
                observed: observed
                    .into_iter()
                    .map(|(k, s, until)| ObservedSignal {
                        until: TIMED.contains(&KINDS[k]).then(|| at(until)),
                        ..observed_signal(KINDS[k], at(s.min(now)))
                    })
                    .collect(),
            };
            (signals, at(now))
        })
    }

    proptest! {
        #[test]
        fn removed_signal_never_raises_level((signals, now) in signals()) {
            let policy = AgentPolicy::default();
            let full = ActivityAssessment::assess(&signals, &policy, now).level;
            for i in 0..signals.intents.len() {
                let mut less = signals.clone();
                less.intents.remove(i);
                prop_assert!(ActivityAssessment::assess(&less, &policy, now).level <= full);
            }
            for i in 0..signals.observed.len() {
                let mut less = signals.clone();
                less.observed.remove(i);
                prop_assert!(ActivityAssessment::assess(&less, &policy, now).level <= full);
            }
        }

        #[test]
        fn first_evidence_decides_level((signals, now) in signals()) {
            let assessed = ActivityAssessment::assess(&signals, &AgentPolicy::default(), now);
            let strongest = assessed.evidence.first().filter(|e| !e.capped);
            prop_assert_eq!(assessed.level, strongest.map_or(ActivityLevel::Idle, |e| level_of(e.signal)));
            prop_assert_eq!(assessed.evidence.len(), signals.intents.len() + signals.observed.len());
        }

        #[test]
        fn only_lease_or_call_outlives_work_cap((signals, _) in signals()) {
            let policy = AgentPolicy::default();
            let capped = signals.anchor() + policy.work_cap;
            let assessed = ActivityAssessment::assess(&signals, &policy, capped);
            prop_assert!(assessed.evidence.iter().all(|e| e.capped || TIMED.contains(&e.signal)));
        }

        #[test]
        fn level_is_stable_until_next_change((signals, now) in signals()) {
            let policy = AgentPolicy::default();
            let assessed = ActivityAssessment::assess(&signals, &policy, now);
            if let Some(left) = assessed.next_change_in() {
                let just_before = now + left - Duration::from_nanos(1);
                let before = ActivityAssessment::assess(&signals, &policy, just_before);
                prop_assert!(before.is_equivalent(&assessed) || before.level == assessed.level);
            }
        }
    }
}
