//! Following a workspace until it is where it is to get: awake, asleep or gone; saying meanwhile what it is doing.
//!
//! [`TargetState`] and [`StateWaiter`] are pure; [`wait_for`] feeds them.

use std::time::SystemTime;

use podling_proto::control::v1::{State, Workspace};
use prost_types::Timestamp;

use crate::{
    client::Client,
    failure::CommandFailure,
    next_transition::{self, place},
    output::plain,
    spinner::WorkspaceSpinner,
    view::state,
    workspace_watcher::{WorkspaceChange, WorkspaceWatcher},
};

/// Where a workspace is to get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetState {
    /// Serving.
    Awake,
    /// Without processes.
    Asleep,
    /// Deleted.
    Deleted,
}

/// What is known of a journey under way.
#[derive(Debug)]
pub struct StateWaiter {
    target: TargetState,
    /// Of a failure that is older than the journey, and does not end it: it is tried again for whoever comes.
    failed_before: Option<Timestamp>,
    /// It has been on its way up (or down), so that being down (or up) means that somebody turned it round.
    in_transition: bool,
    archiving: bool,
}

/// What a state means for the journey.
#[derive(Debug, PartialEq, Eq)]
pub enum WaitProgress {
    /// It goes on.
    Pending,
    /// It goes on, but something is worth telling.
    Retrying(String),
    /// It is there.
    Reached,
    /// It will not get there.
    Unreachable(String),
}

impl StateWaiter {
    /// A journey that begins like this.
    pub fn new(target: TargetState, start: &Workspace) -> Self {
        let failed_before = start.since.filter(|_| start.state() == State::Failed);
        // The answer it begins with may be the last that shows it on its way.
        let in_transition = match target {
            TargetState::Awake => matches!(start.state(), State::Queued | State::Starting),
            TargetState::Asleep => start.state() == State::FallingAsleep,
            TargetState::Deleted => false,
        };
        Self { target, failed_before, in_transition, archiving: false }
    }

    /// Takes how it is now.
    pub fn observe(&mut self, workspace: &Workspace, now: SystemTime) -> WaitProgress {
        match self.target {
            _ if workspace.deleted && self.target != TargetState::Deleted => {
                WaitProgress::Unreachable("was deleted".to_owned())
            }
            TargetState::Awake => self.observe_waking(workspace),
            TargetState::Asleep => self.observe_sleeping(workspace),
            TargetState::Deleted => self.observe_deletion(workspace, now),
        }
    }

    fn observe_waking(&mut self, workspace: &Workspace) -> WaitProgress {
        let why = plain(&workspace.reason);
        match workspace.state() {
            State::Awake => return WaitProgress::Reached,
            State::Failed if workspace.since != self.failed_before || self.failed_before.is_none() => {
                return WaitProgress::Unreachable(format!("failed to start: {why}"));
            }
            State::Deleting => return WaitProgress::Unreachable("is being deleted".to_owned()),
            State::Asleep if self.in_transition => {
                return WaitProgress::Unreachable(format!("was put to sleep meanwhile: {why}"));
            }
            // It was being restored: that is tried again.
            State::Archived if self.in_transition => return WaitProgress::Retrying(why),
            State::Queued | State::Starting => self.in_transition = true,
            _ => {}
        }
        WaitProgress::Pending
    }

    fn observe_sleeping(&mut self, workspace: &Workspace) -> WaitProgress {
        match workspace.state() {
            State::Asleep | State::Archiving | State::Archived => return WaitProgress::Reached,
            State::Deleting => return WaitProgress::Unreachable("is being deleted".to_owned()),
            State::FallingAsleep => self.in_transition = true,
            State::Awake | State::Queued | State::Starting if self.in_transition => {
                let why = plain(&workspace.reason);
                return WaitProgress::Unreachable(format!("did not fall asleep: {why}"));
            }
            _ => {}
        }
        WaitProgress::Pending
    }

    fn observe_deletion(&mut self, workspace: &Workspace, now: SystemTime) -> WaitProgress {
        match workspace.state() {
            _ if workspace.deleted => return WaitProgress::Reached,
            State::Archiving => self.archiving = true,
            // It sleeps only for as long as its archive has to wait.
            State::Asleep => {
                let wait =
                    next_transition::left(workspace.next_transition, now).filter(|left| !left.is_zero());
                if self.archiving || wait.is_some() {
                    return WaitProgress::Retrying(plain(&workspace.reason));
                }
            }
            _ => {}
        }
        WaitProgress::Pending
    }
}

/// Waits until it is there; answers with the workspace as it is then, or was last.
pub async fn wait_for(
    client: &Client,
    workspace: Workspace,
    target: TargetState,
) -> Result<Workspace, CommandFailure> {
    let mut waiter = StateWaiter::new(target, &workspace);
    let mut spinner = WorkspaceSpinner::new(&workspace);
    let mut changes = WorkspaceWatcher::new(client.clone(), workspace.id.clone());
    let mut last = workspace;
    let mut told = String::new();
    loop {
        match changes.next().await? {
            WorkspaceChange::Deleted if target == TargetState::Deleted => return Ok(last),
            WorkspaceChange::Deleted => {
                return Err(CommandFailure::NotFound(format!("{} was deleted meanwhile", last.name)));
            }
            WorkspaceChange::Current(now) => last = *now,
        }
        match waiter.observe(&last, SystemTime::now()) {
            WaitProgress::Reached => return Ok(last),
            WaitProgress::Unreachable(why) => {
                return Err(CommandFailure::Other(format!("{} {why}", last.name)));
            }
            WaitProgress::Retrying(why) if why != told => {
                let line = format!(
                    "{}: {why}; it is tried again. Ctrl-C ends the waiting here, not the trying",
                    last.name
                );
                spinner.say(&line);
                told = why;
            }
            WaitProgress::Retrying(_) | WaitProgress::Pending => {}
        }
        spinner.show(&last);
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

    fn last_progress(target: TargetState, states: &[(State, &str)]) -> WaitProgress {
        let steps: Vec<_> = states.iter().map(|(state, reason)| at(*state, reason)).collect();
        let mut waiter = StateWaiter::new(target, &steps[0]);
        steps.iter().map(|workspace| waiter.observe(workspace, NOW)).last().expect("a step")
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
            assert_eq!(
                last_progress(TargetState::Awake, &states.map(|state| (state, ""))),
                WaitProgress::Reached,
                "{states:?}"
            );
        }
        for states in [[Awake, FallingAsleep, Asleep], [Starting, FallingAsleep, Archiving]] {
            assert_eq!(
                last_progress(TargetState::Asleep, &states.map(|state| (state, ""))),
                WaitProgress::Reached,
                "{states:?}"
            );
        }
    }

    #[test]
    fn one_that_was_turned_round_is_not_waited_for() {
        let woken = last_progress(
            TargetState::Asleep,
            &[(State::FallingAsleep, ""), (State::Awake, "somebody came before it slept")],
        );
        assert_eq!(
            woken,
            WaitProgress::Unreachable("did not fall asleep: somebody came before it slept".to_owned())
        );
        // Before the first look, too.
        let mut waiter = StateWaiter::new(TargetState::Asleep, &at(State::FallingAsleep, ""));
        let declined = waiter.observe(&at(State::Awake, "it is in use"), NOW);
        assert_eq!(declined, WaitProgress::Unreachable("did not fall asleep: it is in use".to_owned()));
        let slept = last_progress(
            TargetState::Awake,
            &[(State::Starting, ""), (State::Asleep, "somebody puts it to sleep")],
        );
        assert!(matches!(slept, WaitProgress::Unreachable(why) if why.contains("somebody puts it to sleep")));
    }

    #[test]
    fn a_failure_counts_only_from_here_on() {
        let old = at(State::Failed, "no such program");
        let mut waiter = StateWaiter::new(TargetState::Awake, &old);
        assert_eq!(waiter.observe(&old, NOW), WaitProgress::Pending, "it is tried again for whoever comes");
        let new = Workspace { since: Some(Timestamp { seconds: 200, nanos: 0 }), ..old };
        assert!(
            matches!(waiter.observe(&new, NOW), WaitProgress::Unreachable(why) if why.contains("no such program"))
        );
    }

    #[test]
    fn an_archive_that_fails_is_told_and_waited_for() {
        let why = "it could not be archived, and its storage is kept: the store is full";
        let told = last_progress(TargetState::Deleted, &[(State::Archiving, ""), (State::Asleep, why)]);
        assert_eq!(told, WaitProgress::Retrying(why.to_owned()));
        // It failed before: the next try is later.
        let mut waits = at(State::Asleep, why);
        let mut waiter = StateWaiter::new(TargetState::Deleted, &waits);
        assert_eq!(waiter.observe(&waits, NOW), WaitProgress::Pending, "it is about to be archived");
        waits.next_transition = Some((NOW + Duration::from_secs(5)).into());
        assert_eq!(waiter.observe(&waits, NOW), WaitProgress::Retrying(why.to_owned()));
    }

    #[test]
    fn one_that_waits_says_its_place() {
        let queued = Workspace { queue_position: 2, ..at(State::Queued, "there is no room") };
        assert_eq!(describe(&queued), "demo is queued, 2nd in line: there is no room");
    }
}
