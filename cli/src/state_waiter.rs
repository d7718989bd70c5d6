//! Waits until a workspace is awake, asleep or deleted, and shows its progress meanwhile.
//!
//! [`StateWaiter`] decides and is pure. [`wait_for`] watches the workspace and shows the progress.

use std::time::SystemTime;

use podling_proto::{
    control::v1::{State, Workspace},
    text,
};
use prost_types::Timestamp;

use crate::{
    advice,
    client::Client,
    duration::{brief, left},
    failure::CommandFailure,
    output::plain,
    spinner::WorkspaceSpinner,
    workspace_text::reason,
    workspace_watcher::{WorkspaceChange, WorkspaceWatcher},
};

/// The state that a command waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetState {
    Awake,
    Asleep,
    Deleted,
}

/// Decides after each observed state whether the wait for the target goes on. Pure.
#[derive(Debug)]
pub struct StateWaiter {
    target: TargetState,
    /// Time of a failed start before the wait. This failure does not end the wait, because the
    /// request retries the start.
    failed_before: Option<Timestamp>,
    /// Whether the workspace was observed on its way to the target. From then on, the opposite
    /// state means that another request reversed the transition.
    in_transition: bool,
    archiving: bool,
    /// Whether the control plane reports that the workspace is being deleted. An older one does not.
    deleting: bool,
}

/// Consequence of an observed state for the wait.
#[derive(Debug, PartialEq, Eq)]
pub enum WaitProgress {
    Pending,
    /// The wait continues after this failure, which is shown to the user.
    Retrying(String),
    Reached,
    /// The target will not be reached. The text is a predicate for the workspace's name: "was
    /// deleted".
    Unreachable(String),
}

impl StateWaiter {
    /// Starts the wait with the workspace as the request's response shows it.
    pub fn new(target: TargetState, start: &Workspace) -> Self {
        let failed_before = start.since.filter(|_| start.state() == State::Failed);
        // No later response may show the workspace in transition.
        let in_transition = match target {
            TargetState::Awake => matches!(start.state(), State::Queued | State::Starting),
            TargetState::Asleep => start.state() == State::FallingAsleep,
            TargetState::Deleted => false,
        };
        Self { target, failed_before, in_transition, archiving: false, deleting: start.deleting }
    }

    /// Decides what the workspace's present state means for the wait.
    fn observe(&mut self, workspace: &Workspace, now: SystemTime) -> WaitProgress {
        match self.target {
            _ if workspace.deleted && self.target != TargetState::Deleted => {
                WaitProgress::Unreachable("was deleted".to_owned())
            }
            TargetState::Awake if workspace.deleting => {
                let why = reason(workspace);
                let name = &workspace.name;
                let undelete = advice::command(format_args!("undelete {name}"));
                WaitProgress::Unreachable(format!(
                    "is being deleted ({why}); take the deletion back with: {undelete}"
                ))
            }
            TargetState::Awake => self.observe_waking(workspace),
            TargetState::Asleep => self.observe_sleeping(workspace),
            TargetState::Deleted => self.observe_deletion(workspace, now),
        }
    }

    fn observe_waking(&mut self, workspace: &Workspace) -> WaitProgress {
        let why = reason(workspace);
        match workspace.state() {
            State::Awake => return WaitProgress::Reached,
            State::Failed if workspace.since != self.failed_before || self.failed_before.is_none() => {
                let why = workspace.reason.as_ref().map(text::start_failure).unwrap_or_default();
                return WaitProgress::Unreachable(format!("failed to start: {}", plain(&why)));
            }
            State::Deleting => return WaitProgress::Unreachable("is being deleted".to_owned()),
            State::Asleep if self.in_transition => {
                return WaitProgress::Unreachable(format!("was put to sleep meanwhile: {why}"));
            }
            // A failed restore is retried.
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
                let why = reason(workspace);
                return WaitProgress::Unreachable(format!("did not fall asleep: {why}"));
            }
            _ => {}
        }
        WaitProgress::Pending
    }

    fn observe_deletion(&mut self, workspace: &Workspace, now: SystemTime) -> WaitProgress {
        match workspace.state() {
            _ if workspace.deleted => return WaitProgress::Reached,
            _ if self.deleting && !workspace.deleting => {
                return WaitProgress::Unreachable("is not deleted; the deletion was taken back".to_owned());
            }
            State::Archiving => self.archiving = true,
            // The workspace is archived before it is deleted, and waits for the next attempt.
            State::Asleep => {
                let wait = left(workspace.next.as_ref().and_then(|next| next.at), now)
                    .filter(|wait| !wait.is_zero());
                if self.archiving || wait.is_some() {
                    return WaitProgress::Retrying(reason(workspace));
                }
            }
            _ => {}
        }
        WaitProgress::Pending
    }
}

/// Waits until the workspace reaches the target, and shows its progress. Returns the workspace as
/// it was last observed.
pub async fn wait_for(
    client: &Client,
    workspace: Workspace,
    target: TargetState,
) -> Result<Workspace, CommandFailure> {
    let mut waiter = StateWaiter::new(target, &workspace);
    let mut spinner = WorkspaceSpinner::new(&workspace);
    let mut changes = WorkspaceWatcher::new(client.clone(), workspace.id.clone());
    let mut last = workspace;
    let mut last_failure = String::new();
    loop {
        match changes.next().await? {
            WorkspaceChange::Deleted if target == TargetState::Deleted => return Ok(last),
            WorkspaceChange::Deleted => {
                return Err(CommandFailure::NotFound(format!("{} was deleted meanwhile", last.name)));
            }
            WorkspaceChange::Disconnected => {
                spinner.say("the control plane does not answer; reconnecting …");
                continue;
            }
            WorkspaceChange::Current(now) => last = *now,
        }
        match waiter.observe(&last, SystemTime::now()) {
            WaitProgress::Reached => return Ok(last),
            WaitProgress::Unreachable(why) => {
                return Err(CommandFailure::Other(format!("{} {why}", last.name)));
            }
            WaitProgress::Retrying(why) if why != last_failure => {
                let name = &last.name;
                let pause = left(last.next.as_ref().and_then(|next| next.at), SystemTime::now());
                let when = pause.and_then(brief).map(|pause| format!(" in {pause}"));
                let when = when.unwrap_or_default();
                let mut line =
                    format!("{name}: {why}; retrying{when}. Ctrl-C stops this command, not the retries");
                if last.deleting {
                    let undelete = advice::command(format_args!("undelete {name}"));
                    line.push_str(&format!(". Take the deletion back with: {undelete}"));
                }
                spinner.say(&line);
                last_failure = why;
            }
            WaitProgress::Retrying(_) | WaitProgress::Pending => {}
        }
        spinner.show(&last);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use podling_proto::control::v1::{NextStep, StateReason, StateReasonCode};

    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn at(state: State, detail: &str) -> Workspace {
        let since = Some(Timestamp { seconds: 100, nanos: 0 });
        let code = StateReasonCode::Unspecified.into();
        let reason = Some(StateReason { code, detail: detail.to_owned(), ..StateReason::default() });
        Workspace { state: state.into(), name: "demo".to_owned(), reason, since, ..Workspace::default() }
    }

    fn last_progress(target: TargetState, states: &[(State, &str)]) -> WaitProgress {
        let steps: Vec<_> = states.iter().map(|(state, reason)| at(*state, reason)).collect();
        let mut waiter = StateWaiter::new(target, &steps[0]);
        steps.iter().map(|workspace| waiter.observe(workspace, NOW)).last().expect("a step")
    }

    #[test]
    fn target_is_reached_through_every_state_on_the_way() {
        use State::{Archived, Archiving, Asleep, Awake, FallingAsleep, Queued, Starting};
        for states in [
            [Asleep, Queued, Starting, Awake],
            // A request while the workspace fell asleep, and a restore from the archive.
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
    fn wait_ends_when_another_request_reverses_the_transition() {
        let woken = last_progress(
            TargetState::Asleep,
            &[(State::FallingAsleep, ""), (State::Awake, "a request arrived before it had fallen asleep")],
        );
        assert_eq!(
            woken,
            WaitProgress::Unreachable(
                "did not fall asleep: a request arrived before it had fallen asleep".to_owned()
            )
        );
        // The response itself may show the transition that is reversed.
        let mut waiter = StateWaiter::new(TargetState::Asleep, &at(State::FallingAsleep, ""));
        let declined = waiter.observe(&at(State::Awake, "it is in use"), NOW);
        assert_eq!(declined, WaitProgress::Unreachable("did not fall asleep: it is in use".to_owned()));
        let slept = last_progress(
            TargetState::Awake,
            &[(State::Starting, ""), (State::Asleep, "a request asked it to sleep")],
        );
        assert!(
            matches!(slept, WaitProgress::Unreachable(why) if why.contains("a request asked it to sleep"))
        );
    }

    #[test]
    fn failure_before_the_wait_does_not_end_it() {
        let old = at(State::Failed, "no such program");
        let mut waiter = StateWaiter::new(TargetState::Awake, &old);
        assert_eq!(waiter.observe(&old, NOW), WaitProgress::Pending, "the request retries the start");
        let new = Workspace { since: Some(Timestamp { seconds: 200, nanos: 0 }), ..old };
        let progress = waiter.observe(&new, NOW);
        assert!(matches!(progress, WaitProgress::Unreachable(why) if why.contains("no such program")));
    }

    #[test]
    fn wait_ends_when_deletion_decides_otherwise() {
        let deleting = Workspace { deleting: true, ..at(State::Asleep, "archiving failed") };
        let mut waiter = StateWaiter::new(TargetState::Awake, &at(State::Asleep, ""));
        let progress = waiter.observe(&deleting, NOW);
        assert!(
            matches!(&progress, WaitProgress::Unreachable(why) if why.contains("podling undelete demo")),
            "{progress:?}"
        );
        let mut waiter = StateWaiter::new(TargetState::Deleted, &deleting);
        assert_eq!(waiter.observe(&deleting, NOW), WaitProgress::Pending);
        let kept = waiter.observe(&at(State::Asleep, "a request took its deletion back"), NOW);
        assert!(matches!(kept, WaitProgress::Unreachable(why) if why.contains("taken back")));
    }

    #[test]
    fn failed_archive_is_shown_and_waited_for() {
        let why = "archiving failed and the storage stays: the store is full";
        let progress = last_progress(TargetState::Deleted, &[(State::Archiving, ""), (State::Asleep, why)]);
        assert_eq!(progress, WaitProgress::Retrying(why.to_owned()));
        // After an earlier failure, the next attempt is due later.
        let mut waits = at(State::Asleep, why);
        let mut waiter = StateWaiter::new(TargetState::Deleted, &waits);
        assert_eq!(waiter.observe(&waits, NOW), WaitProgress::Pending, "it is about to be archived");
        waits.next =
            Some(NextStep { at: Some((NOW + Duration::from_secs(5)).into()), ..NextStep::default() });
        assert_eq!(waiter.observe(&waits, NOW), WaitProgress::Retrying(why.to_owned()));
    }
}
