//! Following a workspace until it is where it is to get: awake, asleep or gone; saying meanwhile what it is doing.
//!
//! [`Journey`] and [`Track`] are pure; [`follow`] feeds them.

use std::time::SystemTime;

use podling_proto::control::v1::{State, Workspace};
use prost_types::Timestamp;

use crate::{
    client::Client,
    failure::Failure,
    follow::{Change, Follow},
    indicator::Indicator,
    output::plain,
    upcoming::{self, place},
    view::state,
};

/// Where a workspace is to get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Journey {
    /// Serving.
    Awake,
    /// Without processes.
    Asleep,
    /// Deleted.
    Gone,
}

/// What is known of a journey under way.
#[derive(Debug)]
pub struct Track {
    journey: Journey,
    /// Of a failure that is older than the journey, and does not end it: it is tried again for whoever comes.
    failed_before: Option<Timestamp>,
    /// It has been on its way up (or down), so that being down (or up) means that somebody turned it round.
    moved: bool,
    archiving: bool,
}

/// What a state means for the journey.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// It goes on.
    UnderWay,
    /// It goes on, but something is worth telling.
    Setback(String),
    /// It is there.
    Arrived,
    /// It will not get there.
    Lost(String),
}

impl Track {
    /// A journey that begins like this.
    pub fn new(journey: Journey, start: &Workspace) -> Self {
        let failed_before = start.since.filter(|_| start.state() == State::Failed);
        // The answer it begins with may be the last that shows it on its way.
        let moved = match journey {
            Journey::Awake => matches!(start.state(), State::Queued | State::Starting),
            Journey::Asleep => start.state() == State::FallingAsleep,
            Journey::Gone => false,
        };
        Self { journey, failed_before, moved, archiving: false }
    }

    /// Takes how it is now.
    pub fn judge(&mut self, workspace: &Workspace, now: SystemTime) -> Step {
        match self.journey {
            _ if workspace.deleted && self.journey != Journey::Gone => Step::Lost("was deleted".to_owned()),
            Journey::Awake => self.judge_waking(workspace),
            Journey::Asleep => self.judge_sleeping(workspace),
            Journey::Gone => self.judge_going(workspace, now),
        }
    }

    fn judge_waking(&mut self, workspace: &Workspace) -> Step {
        let why = plain(&workspace.reason);
        match workspace.state() {
            State::Awake => return Step::Arrived,
            State::Failed if workspace.since != self.failed_before || self.failed_before.is_none() => {
                return Step::Lost(format!("failed to start: {why}"));
            }
            State::Deleting => return Step::Lost("is being deleted".to_owned()),
            State::Asleep if self.moved => {
                return Step::Lost(format!("was put to sleep meanwhile: {why}"));
            }
            // It was being restored: that is tried again.
            State::Archived if self.moved => return Step::Setback(why),
            State::Queued | State::Starting => self.moved = true,
            _ => {}
        }
        Step::UnderWay
    }

    fn judge_sleeping(&mut self, workspace: &Workspace) -> Step {
        match workspace.state() {
            State::Asleep | State::Archiving | State::Archived => return Step::Arrived,
            State::Deleting => return Step::Lost("is being deleted".to_owned()),
            State::FallingAsleep => self.moved = true,
            State::Awake | State::Queued | State::Starting if self.moved => {
                let why = plain(&workspace.reason);
                return Step::Lost(format!("did not fall asleep: {why}"));
            }
            _ => {}
        }
        Step::UnderWay
    }

    fn judge_going(&mut self, workspace: &Workspace, now: SystemTime) -> Step {
        match workspace.state() {
            _ if workspace.deleted => return Step::Arrived,
            State::Archiving => self.archiving = true,
            // It sleeps only for as long as its archive has to wait.
            State::Asleep => {
                let wait = upcoming::left(workspace.next_transition, now).filter(|left| !left.is_zero());
                if self.archiving || wait.is_some() {
                    return Step::Setback(plain(&workspace.reason));
                }
            }
            _ => {}
        }
        Step::UnderWay
    }
}

/// Waits until it is there; answers with the workspace as it is then, or was last.
pub async fn follow(client: &Client, workspace: Workspace, journey: Journey) -> Result<Workspace, Failure> {
    let mut track = Track::new(journey, &workspace);
    let mut indicator = Indicator::new(&workspace);
    let mut changes = Follow::new(client.clone(), workspace.id.clone());
    let mut last = workspace;
    let mut told = String::new();
    loop {
        match changes.next().await? {
            Change::Gone if journey == Journey::Gone => return Ok(last),
            Change::Gone => {
                return Err(Failure::NotFound(format!("{} was deleted meanwhile", last.name)));
            }
            Change::Now(now) => last = *now,
        }
        match track.judge(&last, SystemTime::now()) {
            Step::Arrived => return Ok(last),
            Step::Lost(why) => return Err(Failure::Other(format!("{} {why}", last.name))),
            Step::Setback(why) if why != told => {
                let line = format!(
                    "{}: {why}; it is tried again. Ctrl-C ends the waiting here, not the trying",
                    last.name
                );
                indicator.say(&line);
                told = why;
            }
            Step::Setback(_) | Step::UnderWay => {}
        }
        indicator.show(&last);
    }
}

/// What it is doing, in a line.
pub fn describe(workspace: &Workspace) -> String {
    let mut line = format!("{} is {}", workspace.name, state(workspace.state()));
    if let Some(place) = place(workspace) {
        line.push_str(&format!(", {place}"));
    }
    if !workspace.reason.is_empty() {
        line.push_str(&format!(": {}", plain(&workspace.reason)));
    }
    line
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn at(state: State, reason: &str) -> Workspace {
        let since = Some(Timestamp { seconds: 100, nanos: 0 });
        let (name, reason) = ("demo".to_owned(), reason.to_owned());
        Workspace { state: state.into(), name, reason, since, ..Workspace::default() }
    }

    fn walk(journey: Journey, states: &[(State, &str)]) -> Step {
        let steps: Vec<_> = states.iter().map(|(state, reason)| at(*state, reason)).collect();
        let mut track = Track::new(journey, &steps[0]);
        steps.iter().map(|workspace| track.judge(workspace, NOW)).last().expect("a step")
    }

    #[test]
    fn it_arrives_over_every_state_on_the_way() {
        use State::{Archived, Archiving, Asleep, Awake, FallingAsleep, Queued, Starting};
        for states in [
            [Asleep, Queued, Starting, Awake],
            // Asked while it fell asleep; only its archive was left.
            [FallingAsleep, Asleep, Queued, Awake],
            [Archived, Starting, Queued, Awake],
        ] {
            assert_eq!(walk(Journey::Awake, &states.map(|state| (state, ""))), Step::Arrived, "{states:?}");
        }
        for states in [[Awake, FallingAsleep, Asleep], [Starting, FallingAsleep, Archiving]] {
            assert_eq!(walk(Journey::Asleep, &states.map(|state| (state, ""))), Step::Arrived, "{states:?}");
        }
    }

    #[test]
    fn one_that_was_turned_round_is_not_waited_for() {
        let woken = walk(
            Journey::Asleep,
            &[(State::FallingAsleep, ""), (State::Awake, "somebody came before it slept")],
        );
        assert_eq!(woken, Step::Lost("did not fall asleep: somebody came before it slept".to_owned()));
        // Before the first look, too.
        let mut track = Track::new(Journey::Asleep, &at(State::FallingAsleep, ""));
        let declined = track.judge(&at(State::Awake, "it is in use"), NOW);
        assert_eq!(declined, Step::Lost("did not fall asleep: it is in use".to_owned()));
        let slept =
            walk(Journey::Awake, &[(State::Starting, ""), (State::Asleep, "somebody puts it to sleep")]);
        assert!(matches!(slept, Step::Lost(why) if why.contains("somebody puts it to sleep")));
    }

    #[test]
    fn a_failure_counts_only_from_here_on() {
        let old = at(State::Failed, "no such program");
        let mut track = Track::new(Journey::Awake, &old);
        assert_eq!(track.judge(&old, NOW), Step::UnderWay, "it is tried again for whoever comes");
        let new = Workspace { since: Some(Timestamp { seconds: 200, nanos: 0 }), ..old };
        assert!(matches!(track.judge(&new, NOW), Step::Lost(why) if why.contains("no such program")));
    }

    #[test]
    fn an_archive_that_fails_is_told_and_waited_for() {
        let why = "it could not be archived, and its storage is kept: the store is full";
        let told = walk(Journey::Gone, &[(State::Archiving, ""), (State::Asleep, why)]);
        assert_eq!(told, Step::Setback(why.to_owned()));
        // It failed before: the next try is later.
        let mut waits = at(State::Asleep, why);
        let mut track = Track::new(Journey::Gone, &waits);
        assert_eq!(track.judge(&waits, NOW), Step::UnderWay, "it is about to be archived");
        waits.next_transition = Some((NOW + Duration::from_secs(5)).into());
        assert_eq!(track.judge(&waits, NOW), Step::Setback(why.to_owned()));
    }

    #[test]
    fn one_that_waits_says_its_place() {
        let queued = Workspace { queue_position: 2, ..at(State::Queued, "there is no room") };
        assert_eq!(describe(&queued), "demo is queued, 2nd in line: there is no room");
    }
}
