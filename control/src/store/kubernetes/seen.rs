//! What is seen of a workspace beside its record, as its resource shows it.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use podling_core::{
    time::Timestamp,
    workspace::{AgentConnection, State},
};
use podling_proto::agent::v1::{ActivityLevel, ActivityState};

use super::status::{condition, time};
use crate::{
    kubernetes::{NextTransition, WorkspaceStatus},
    snapshot::WorkspaceView,
};

/// How much a time may move before it counts as another: a heartbeat says what was counted up to the one before it, 15 s ago or less.
const SLACK: Duration = Duration::from_secs(20);

/// What is seen. None of it is a base for decisions, nor is it read again.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Seen {
    connected: bool,
    resized: Resized,
    level: Option<&'static str>,
    idle_since: Option<Timestamp>,
    next: Option<(Timestamp, String)>,
    pod_uid: Option<String>,
    boot_id: Option<String>,
    key_fingerprint: Option<String>,
    image: Option<String>,
}

/// Whether it has what it is to have.
#[derive(Debug, Clone, Default, PartialEq)]
enum Resized {
    /// As it will with its next start, if it has none now.
    #[default]
    AsWanted,
    /// Its owner's share is used up.
    WaitsForRoom,
    /// It has another; why it has not changed yet.
    Waits(String),
}

impl Seen {
    /// Of this picture, taken now.
    pub(super) fn of(view: &WorkspaceView, now: Timestamp) -> Self {
        let agent = view.agent.as_deref();
        let activity = view.activity.as_deref().filter(|_| view.state == State::Awake);
        let level = activity.and_then(|activity| match activity.level() {
            ActivityLevel::Active => Some("active"),
            ActivityLevel::Busy => Some("busy"),
            ActivityLevel::Idle => Some("idle"),
            ActivityLevel::Unspecified => None,
        });
        let idle = activity.filter(|_| level == Some("idle"));
        Self {
            connected: view.connection == AgentConnection::Connected,
            resized: Resized::of(view),
            level,
            idle_since: idle.and_then(|activity| idle_since(activity, now)),
            next: view.next.clone(),
            pod_uid: agent.map(|agent| agent.instance.to_string()),
            boot_id: agent.map(|agent| agent.boot_id.clone()),
            key_fingerprint: agent.map(|agent| agent.fingerprint.to_string()),
            image: agent.and_then(|agent| agent.image.clone()),
        }
    }

    /// The same, with the times that were shown before where they have hardly moved.
    #[must_use]
    pub(super) fn steady(mut self, before: &Self) -> Self {
        if let (Some(now), Some(shown)) = (&mut self.idle_since, before.idle_since) {
            *now = steady(*now, shown);
        }
        if let (Some((now, what)), Some((shown, shown_what))) = (&mut self.next, &before.next)
            && what == shown_what
        {
            *now = steady(*now, *shown);
        }
        self
    }

    /// Shows it, and what follows from it, in a status that follows from this generation.
    pub(super) fn show(&self, status: &mut WorkspaceStatus, now: Timestamp) {
        status.activity = self.level.map(str::to_owned);
        status.idle_since = self.idle_since.and_then(time);
        status.next = self.next.as_ref().and_then(|(at, what)| next(*at, what));
        status.pod_uid.clone_from(&self.pod_uid);
        status.boot_id.clone_from(&self.boot_id);
        status.key_fingerprint.clone_from(&self.key_fingerprint);
        // What ran last stays.
        status.image_digest = self.image.clone().or(status.image_digest.take());
        let connected = if self.connected { "connected" } else { "unknown" };
        let (resized, said) = match &self.resized {
            Resized::AsWanted => ("as-wanted", ""),
            Resized::WaitsForRoom => ("waits-for-room", "its owner's share has no room for it"),
            Resized::Waits(why) => ("waits", why.as_str()),
        };
        let is_resized = self.resized == Resized::AsWanted;
        let facts =
            [("AgentConnected", self.connected, connected, ""), ("Resized", is_resized, resized, said)];
        for (kind, holds, why, said) in facts {
            let at = status.conditions.iter().position(|condition| condition.type_ == kind);
            let old = at.map(|at| status.conditions.remove(at));
            let generation = status.observed_generation;
            let mut condition = condition(kind, holds, why, now, generation, old.as_ref());
            said.clone_into(&mut condition.message);
            status.conditions.insert(at.unwrap_or(status.conditions.len()), condition);
        }
    }
}

impl Resized {
    fn of(view: &WorkspaceView) -> Self {
        let wanted = Some(view.spec.resources);
        match view.state {
            State::Awake if view.given != wanted => Self::WaitsForRoom,
            State::Awake if view.allotted != wanted => Self::Waits(view.reason.clone()),
            _ => Self::AsWanted,
        }
    }
}

/// As its last heartbeat says, which may be a while ago: else what is shown would move with the moment of looking.
fn idle_since(activity: &ActivityState, now: Timestamp) -> Option<Timestamp> {
    let counted = Duration::try_from(activity.counted_idle?).ok()?;
    // Its clock may go wrong.
    let beat = activity.at.as_ref().and_then(millis).filter(|at| *at <= now).unwrap_or(now);
    Some(before(beat, counted))
}

fn millis(at: &prost_types::Timestamp) -> Option<Timestamp> {
    let seconds = u64::try_from(at.seconds).ok()?;
    Some(Timestamp(seconds.saturating_mul(1000) + u64::try_from(at.nanos).ok()? / 1_000_000))
}

fn steady(now: Timestamp, shown: Timestamp) -> Timestamp {
    if now.since(shown).max(shown.since(now)) <= SLACK { shown } else { now }
}

fn before(now: Timestamp, by: Duration) -> Timestamp {
    Timestamp(now.0.saturating_sub(u64::try_from(by.as_millis()).unwrap_or(u64::MAX)))
}

fn next(at: Timestamp, what: &str) -> Option<NextTransition> {
    let at: Option<Time> = time(at);
    Some(NextTransition { what: what.to_owned(), at: at? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_hardly_moves_is_shown_as_before() {
        let idle = |seconds: u64, next: u64| Seen {
            idle_since: Some(Timestamp(seconds * 1000)),
            next: Some((Timestamp(next * 1000), "it falls asleep".into())),
            ..Seen::default()
        };
        let shown = idle(1000, 2000);
        assert_eq!(idle(1019, 1985).steady(&shown), shown);
        assert_eq!(idle(1021, 2000).steady(&shown), idle(1021, 2000), "it was used meanwhile");
        let other = Seen { next: Some((Timestamp(2_000_001), "it is warned".into())), ..shown.clone() };
        assert_eq!(other.clone().steady(&shown), other);
    }

    #[test]
    fn idle_time_is_told_from_the_heartbeat_whenever_it_is_looked_at() {
        let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 500_000_000 });
        let beat = ActivityState { counted_idle: seconds(60), at: at(1000), ..Default::default() };
        for looked_at in [1_000_500, 1_014_000, 1_300_000] {
            assert_eq!(idle_since(&beat, Timestamp(looked_at)), Some(Timestamp(940_500)));
        }
        let ahead = ActivityState { at: at(9000), ..beat };
        assert_eq!(
            idle_since(&ahead, Timestamp(1_000_000)),
            Some(Timestamp(940_000)),
            "nobody is idle since then"
        );
    }

    #[test]
    fn what_ran_last_is_still_shown_when_nothing_runs() {
        let awake = Seen {
            connected: true,
            image: Some("localhost/python@sha256:1".into()),
            boot_id: Some("one".into()),
            ..Seen::default()
        };
        let mut status = WorkspaceStatus::default();
        awake.show(&mut status, Timestamp(5_000));
        Seen::default().show(&mut status, Timestamp(9_000));
        assert_eq!(status.image_digest.as_deref(), Some("localhost/python@sha256:1"));
        assert_eq!(status.boot_id, None);
        let [connected, _resized] = &status.conditions[..] else { panic!("{:?}", status.conditions) };
        assert_eq!((connected.status.as_str(), connected.reason.as_str()), ("False", "Unknown"));
        assert_eq!(Some(connected.last_transition_time.clone()), time(Timestamp(9_000)));
    }
}
